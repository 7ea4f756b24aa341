"""Find the launcher that started this process, and the number of processes requested from it.

`accelerate launch --cpu --num_processes 2` and a `MULTI_CPU` configuration file start one process
and do not pass on the requested number of processes. This module therefore reads the number from
the command line of the parent process, or from the configuration file.
"""

import os
from pathlib import Path

import psutil
import yaml
from accelerate.commands.config.config_args import default_config_file

LAUNCHERS = ("accelerate", "accelerate-launch", "torchrun", "accelerate.commands.launch")


def launcher_command() -> list[str]:
    """Return the command line of the parent process if it is a launcher, else an empty list."""
    try:
        command = psutil.Process(os.getppid()).cmdline()
    except psutil.Error:
        return []
    names = (Path(word).name for word in command[:4])
    return command if any(name in LAUNCHERS for name in names) else []


def requested_processes() -> int:
    """Return the number of processes requested from the launcher, over all machines."""
    return max(int(os.environ.get("WORLD_SIZE", 1)), _requested_of_launcher(launcher_command()))


def _requested_of_launcher(command: list[str]) -> int:
    options = _options(command)
    if "num_processes" in options:
        value = options["num_processes"]
        return int(value) if value.isdecimal() else 1
    if not any("accelerate" in Path(word).name for word in command[:4]):
        return 1
    return _requested_of_file(options.get("config_file", default_config_file))


def _requested_of_file(path: str) -> int:
    """Return `num_processes` from a file of `accelerate config`; 1 if `distributed_type` is NO."""
    try:
        config = yaml.safe_load(Path(path).read_text(encoding="utf-8"))
        is_distributed = config.get("distributed_type", "NO") not in ("NO", False)
        return int(config.get("num_processes", 1)) if is_distributed else 1
    except (OSError, ValueError, TypeError, AttributeError, yaml.YAMLError):
        return 1  # for an invalid file, the launcher itself raises an error


def _options(command: list[str]) -> dict[str, str]:
    """Return the launcher's options; those after the name of the script belong to the script."""
    options = {}
    for position, word in enumerate(command):
        if word.endswith(".py"):
            break
        if word.startswith("--"):
            name, _, value = word[2:].partition("=")
            following = command[position + 1] if position + 1 < len(command) else ""
            options[name.replace("-", "_")] = value or following
    return options
