"""The environment that `accelerate launch --config_file configs/NAME.yaml` sets for a process.

Accelerate has no public function for this, so private names of Accelerate and argparse are used:
`_validate_launch_command` applies the file, `_actions` lists the known arguments, and
`_shared_state` is changed because Accelerate would otherwise select DDP on a CPU.
"""

import argparse
import os
from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from pathlib import Path

from accelerate import PartialState
from accelerate.commands import launch
from accelerate.commands.config.config_args import ClusterConfig
from accelerate.utils import DistributedType
from accelerate.utils.launch import prepare_multi_gpu_env, prepare_simple_launcher_cmd_env

from .processes import ROOT, Patch
from .seams import shards_announced

CONFIGS = ROOT / "configs"


def read_config(path: Path) -> argparse.Namespace:
    """Parse a configuration file as the launcher does.

    Raises:
        ValueError: The file has an unknown key.
    """
    parser = launch.launch_command_parser()
    # Accelerate checks the top-level keys of a file, but not the nested ones.
    known = {"nondefault", *ClusterConfig.__dataclass_fields__, *(a.dest for a in parser._actions)}
    args, *_ = launch._validate_launch_command(
        parser.parse_args(["--config_file", str(path), "train.py"])
    )
    if unknown := vars(args).keys() - known:
        raise ValueError(f"{path}: {unknown}")
    return args


def environment(name: str) -> dict[str, str]:
    """Return the variables that the launcher sets for a file of configs/."""
    args = read_config(CONFIGS / f"{name}.yaml")
    if args.use_fsdp or args.multi_gpu:
        return prepare_multi_gpu_env(args)
    return prepare_simple_launcher_cmd_env(args)[1]


@contextmanager
def fsdp2(precision: str = "no", also: Patch = nullcontext) -> Iterator[None]:
    """Set up the process as for a run with configs/fsdp2.yaml, but on the CPU.

    Args:
        also: A further patch: see `Launch`.
    """
    os.environ.update(environment("fsdp2"), ACCELERATE_MIXED_PRECISION=precision)
    PartialState(cpu=True)
    PartialState._shared_state["distributed_type"] = DistributedType.MULTI_GPU
    with shards_announced(), also():
        yield


@contextmanager
def variables(**values: str) -> Iterator[None]:
    """Set environment variables. They are not restored, because the process ends with the run."""
    os.environ.update(values)
    yield
