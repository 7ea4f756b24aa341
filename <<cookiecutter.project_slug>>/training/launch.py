"""Starting a run: the processes, and whether they are those that were asked for."""

import gc
import os
import sys
from collections.abc import Callable
from pathlib import Path

import psutil
import torch
import transformers
from accelerate import Accelerator

from errors import RunError, Stopped
from scaling.sharding import build_accelerator

REFUSED = 2
STOPPED = 75  # EX_TEMPFAIL of sysexits.h: to be tried again
LAUNCHERS = ("accelerate", "accelerate-launch", "torchrun", "accelerate.commands.launch")


def start(project_dir: str | None = None, report_to: list[str] | None = None) -> Accelerator:
    """Join the processes that `accelerate launch` has started.

    Args:
        project_dir: A folder for trackers that log into files.
        report_to: Names of trackers.

    Raises:
        RunError: more processes were asked for than have found one another.
    """
    transformers.logging.set_verbosity_error()
    transformers.logging.disable_progress_bar()
    accelerator = build_accelerator(log_with=report_to or None, project_dir=project_dir)
    asked = max(int(os.environ.get("WORLD_SIZE", 1)), _asked_of_launcher())
    if asked != accelerator.num_processes:
        raise RunError(
            f"{asked} processes were asked for, but this one is in a group of "
            f"{accelerator.num_processes}; without GPUs, launch with "
            f"`ACCELERATE_USE_CPU=true accelerate launch --multi_gpu --num_processes {asked}`"
        )
    return accelerator


def run(main: Callable[[], None], *refusals: type[Exception]) -> int:
    """Run `main` in all processes and return the exit code.

    Returns:
        0; 2 after one of `refusals` or a `RunError`, 75 after `Stopped`: told in one sentence.
    """
    refused: tuple[type[Exception], ...] = (RunError, *refusals)
    try:
        main()
        code, words = 0, ""
    except refused as error:
        code, words = REFUSED, str(error)
    except Stopped as error:
        code, words = STOPPED, str(error)
    # The model has to be gone first: DistributedDataParallel can hang if it outlives its group.
    gc.collect()
    if words and os.environ.get("RANK", "0") == "0":
        print(f"{Path(sys.argv[0]).name}: {words}", file=sys.stderr)
    if code != REFUSED and torch.distributed.is_initialized():
        torch.distributed.destroy_process_group()
    return code


def launcher_command() -> list[str]:
    """The command of the launcher that started this process, if one did."""
    try:
        command = psutil.Process(os.getppid()).cmdline()
    except psutil.Error:
        return []
    names = (Path(word).name for word in command[:4])
    return command if any(name in LAUNCHERS for name in names) else []


def _asked_of_launcher() -> int:
    """Find `--num_processes` in the command that started this process.

    `accelerate launch --cpu --num_processes 2` starts one process and tells it nothing.
    """
    command = launcher_command()
    for position, word in enumerate(command):
        name, _, value = word.partition("=")
        if name in ("--num_processes", "--num-processes"):
            value = value or command[position + 1]
            return int(value) if value.isdecimal() else 1
        if word.endswith(".py"):  # what follows are the script's own arguments
            break
    return 1
