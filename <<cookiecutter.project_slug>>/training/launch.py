"""Create the Accelerator, check its configuration, and map errors to exit codes."""

import gc
import os
import sys
from collections.abc import Callable
from pathlib import Path

import torch
import transformers
from accelerate import Accelerator
from accelerate.utils import DistributedType, DynamoBackend
from transformers.integrations import unset_hf_deepspeed_config

from errors import INTERRUPTED, REFUSED, STOPPED, RankError, RunError, Stopped, UserError

from .distributed import is_lost_connection
from .launcher import requested_processes

PRECISIONS = ("no", "fp16", "bf16")


def start(project_dir: str | None = None, report_to: list[str] | None = None) -> Accelerator:
    """Create the Accelerator and join the other processes of the launch.

    Args:
        project_dir: Folder for trackers that write files.
        report_to: Names of trackers.

    Raises:
        RunError: Accelerate cannot start, or was configured for a feature that train.py implements
            itself or does not support; or the number of processes is not the requested number.
    """
    transformers.logging.set_verbosity_error()
    transformers.logging.disable_progress_bar()
    _check_fsdp_version()
    try:
        accelerator = Accelerator(log_with=report_to or None, project_dir=project_dir)
    except (ImportError, RuntimeError, ValueError) as error:
        raise RunError(f"Accelerate cannot start: {_first_line(error)}") from None
    # With ZeRO-3, transformers would build sharded models, which training/loading.py cannot load.
    unset_hf_deepspeed_config()
    _check_processes(accelerator)
    _check_settings(accelerator)
    return accelerator


def run(main: Callable[[], None]) -> int:
    """Run `main` and return the exit code of the process.

    Returns:
        0 if there is no error; 75 after Stopped; 130 after a Ctrl-C that the run does not handle; 2
        after a UserError, an out-of-memory error, a device-side assertion of CUDA, or a lost
        connection to another process. Local rank 0 of each machine prints the message. Another rank
        also prints its message if other ranks may not have the same error.

    Raises:
        Exception: `main` raises any other exception.
    """
    # Exclude the objects of all imported modules from garbage collection: each full collection
    # would take half a second.
    gc.freeze()
    gc.enable()
    code = 0
    message = ""
    is_printed = os.environ.get("LOCAL_RANK", "0") == "0"
    try:
        main()
    except Stopped as error:
        code = STOPPED
        message = str(error)
    except KeyboardInterrupt:
        code = INTERRUPTED
        message = "interrupted"
    except Exception as error:
        code = REFUSED
        message = _sentence(error)
        if not message:
            raise
        is_printed = is_printed or not _is_common(error)
    # Delete the model before the process group ends: otherwise DistributedDataParallel can hang.
    gc.collect()
    if message and is_printed:
        print(f"{Path(sys.argv[0]).name}: {message}", file=sys.stderr)
    if code in (0, STOPPED) and torch.distributed.is_initialized():
        torch.distributed.destroy_process_group()
    return code


def _sentence(error: Exception) -> str:
    """Return the message of an error that needs no traceback; otherwise an empty string."""
    if isinstance(error, RankError) and (rank := os.environ.get("RANK")) is not None:
        return f"rank {rank}: {error}"
    if isinstance(error, UserError):
        return str(error)
    if isinstance(error, torch.OutOfMemoryError):
        return (
            f"{_first_line(error)}; expected a lower --batch_size (a run that is resumed with "
            "another --batch_size keeps its global batch size)"
        )
    if "device-side assert" in str(error):  # CUDA raises this in a later operation
        return (
            f"{_first_line(error)}: usually, a label, a token id or another index is out of range; "
            "set CUDA_LAUNCH_BLOCKING=1 for a message that names the step and its examples"
        )
    if is_lost_connection(error):
        return (
            "lost the connection to another process, which ended or cannot be reached "
            f"({_first_line(error)})"
        )
    return ""


def _is_common(error: Exception) -> bool:
    """Return whether all ranks raise this error, or an error that quotes it."""
    is_own = isinstance(error, (RankError, torch.OutOfMemoryError))
    return isinstance(error, UserError) and not is_own


def _check_fsdp_version() -> None:
    """Reject FSDP1. Call this first: on a CPU, the Accelerator cannot be created with FSDP1."""
    is_fsdp = os.environ.get("ACCELERATE_USE_FSDP", "false").lower() == "true"
    version = os.environ.get("FSDP_VERSION", "1")  # older configuration files lack it
    if is_fsdp and version != "2":
        raise RunError(f"fsdp_version {version}: expected `fsdp_version: 2`")


def _check_processes(accelerator: Accelerator) -> None:
    requested = requested_processes()
    if requested != accelerator.num_processes:
        raise RunError(
            f"{requested} processes were requested, but this process is in a group of "
            f"{accelerator.num_processes}; without GPUs, launch with "
            f"`ACCELERATE_USE_CPU=true accelerate launch --multi_gpu --num_processes {requested}`"
        )


def _check_settings(accelerator: Accelerator) -> None:
    """Check the settings that Accelerate read from its configuration file and environment."""
    if (count := accelerator.gradient_accumulation_steps) != 1:
        raise RunError(
            f"Accelerate was configured with gradient_accumulation_steps {count}; expected 1 "
            f"there, and `--accumulation {count}` for train.py"
        )
    backend = accelerator.state.dynamo_plugin.backend
    if backend != DynamoBackend.NO:
        raise RunError(
            f"Accelerate was configured with dynamo_backend {backend.value.lower()}; expected `no` "
            "there, and `--compile` for train.py"
        )
    word = os.environ.get("ACCELERATE_MIXED_PRECISION", "no").lower()
    if word not in PRECISIONS:
        raise RunError(f"mixed_precision {word}: expected one of {', '.join(PRECISIONS)}")
    is_deepspeed = accelerator.distributed_type == DistributedType.DEEPSPEED
    if word != "no" and not accelerator.native_amp and not is_deepspeed:
        raise RunError(f"mixed_precision {word}: not available on {accelerator.device.type}")


def _first_line(error: Exception) -> str:
    return (str(error).strip().splitlines() or [type(error).__name__])[0]
