"""What `accelerate launch --config_file configs/NAME.yaml` tells a process, by its own parser."""

import argparse
import os
from contextlib import ExitStack
from pathlib import Path
from unittest import mock

from accelerate import PartialState
from accelerate.commands import launch
from accelerate.commands.config.config_args import ClusterConfig
from accelerate.utils import DistributedType
from accelerate.utils.launch import prepare_multi_gpu_env, prepare_simple_launcher_cmd_env

import train

CONFIGS = Path(__file__).parent.parent / "configs"


def read_config(name: str) -> argparse.Namespace:
    """Parse a file of configs/ as the launcher does.

    Raises:
        ValueError: it holds a key that Accelerate does not know.
    """
    parser = launch.launch_command_parser()
    # The keys of a file, which Accelerate checks itself, and those below them, which it does not.
    known = {"nondefault", *ClusterConfig.__dataclass_fields__, *(a.dest for a in parser._actions)}
    args, *_ = launch._validate_launch_command(
        parser.parse_args(["--config_file", str(CONFIGS / f"{name}.yaml"), "train.py"])
    )
    if unknown := vars(args).keys() - known:
        raise ValueError(f"{name}: {unknown}")
    return args


def environment(name: str) -> dict[str, str]:
    """The variables that the launcher sets for it, as those of a single process."""
    args = read_config(name)
    if args.use_fsdp or args.multi_gpu:
        return prepare_multi_gpu_env(args)
    return prepare_simple_launcher_cmd_env(args)[1]


def shard(stack: ExitStack, precision: str = "no", then=None) -> None:
    """Begin as configs/fsdp2.yaml asks for; Accelerate alone would use DDP on a CPU."""
    os.environ.update(environment("fsdp2"), ACCELERATE_MIXED_PRECISION=precision)
    PartialState(cpu=True)
    PartialState._shared_state["distributed_type"] = DistributedType.MULTI_GPU
    prepare = train.prepare

    def telling(*parts):
        prepared = prepare(*parts)
        names = {type(part).__name__ for part in prepared[0].modules()}
        print("SHARDED:", sum(name.startswith("FSDP") for name in names))
        return prepared

    stack.enter_context(mock.patch.object(train, "prepare", telling))
    if then is not None:
        then(stack)
