"""Starting a run: the processes, and whether they are those that were asked for."""

import gc
import os
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from datetime import timedelta
from pathlib import Path

import psutil
import torch
import transformers
from accelerate import Accelerator
from accelerate.utils import InitProcessGroupKwargs
from transformers import AutoTokenizer, PreTrainedTokenizerBase

from . import RunError

# One process reads and tokenizes while the others wait; torch would give up after 10 minutes.
PATIENCE = timedelta(hours=12)


def start() -> Accelerator:
    """Join the processes that `accelerate launch` has started.

    Raises:
        RunError: more processes were asked for than have found one another.
    """
    transformers.logging.set_verbosity_error()
    transformers.logging.disable_progress_bar()
    accelerator = Accelerator(kwargs_handlers=[InitProcessGroupKwargs(timeout=PATIENCE)])
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
        0; or 2 after one of `refusals` or a `RunError`, which is told in one sentence.
    """
    told: tuple[type[Exception], ...] = (RunError, *refusals)
    try:
        main()
    except told as error:
        if os.environ.get("RANK", "0") == "0":
            print(f"{Path(sys.argv[0]).name}: {error}", file=sys.stderr)
        return 2
    # The model has to be gone first: DistributedDataParallel can hang if it outlives its group.
    gc.collect()
    if torch.distributed.is_initialized():
        torch.distributed.destroy_process_group()
    return 0


def load_tokenizer(model_id: str) -> PreTrainedTokenizerBase:
    """Load the tokenizer of a base model, or of a checkpoint.

    Raises:
        RunError: there is none.
    """
    try:
        return AutoTokenizer.from_pretrained(model_id)
    except (OSError, ValueError) as error:
        reason = str(error).strip().splitlines()[0]
        raise RunError(f"--model_id {model_id}: no tokenizer to be had there ({reason})") from None


def _asked_of_launcher() -> int:
    """Find `--num_processes` in the command that started this process.

    `accelerate launch --cpu --num_processes 2` starts one process and tells it nothing.
    """
    try:
        command = psutil.Process(os.getppid()).cmdline()
    except psutil.Error:
        return 1
    for position, word in enumerate(command):
        name, _, value = word.partition("=")
        if name in ("--num_processes", "--num-processes"):
            value = value or command[position + 1]
            return int(value) if value.isdecimal() else 1
        if word.endswith(".py"):  # what follows are the script's own arguments
            break
    return 1


@contextmanager
def main_process_first(accelerator: Accelerator) -> Iterator[None]:
    """Let one process of each machine go first, and the others find what it has cached.

    Accelerator's own leaves the others waiting when the first one fails.
    """
    if not accelerator.is_local_main_process:
        accelerator.wait_for_everyone()
    try:
        yield
    finally:
        if accelerator.is_local_main_process:
            accelerator.wait_for_everyone()
