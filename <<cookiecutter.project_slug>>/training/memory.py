"""Halve the size of the micro-batches until they fit into the memory of an accelerator."""

import numpy as np
import torch
from accelerate import Accelerator
from accelerate.utils import send_to_device
from accelerate.utils.memory import clear_device_cache, should_reduce_batch_size

from errors import RankError, RunError, describe

from .contract import ExampleSet, Task
from .distributed import RankGroup

# Device types without OutOfMemoryError. On a CPU, the kernel kills the process instead.
NOT_PROBED = {"cpu"}


def largest_batch_size(
    task: Task,
    accelerator: Accelerator,
    group: RankGroup,
    model: torch.nn.Module,
    examples: ExampleSet,
    asked: int,
) -> int:
    """Halve a batch size until a batch of the longest examples fits into memory.

    A batch fits if a forward and a backward pass on it succeed. On a CPU, return `asked`.

    Args:
        asked: The batch size to start with.

    Raises:
        RunError: Not even one example fits; or `asked` examples do not fit, and the batch size must
            not be reduced (see `ExampleSet.is_divisible`).
        RankError: Loading the longest examples or running the model on them fails.
    """
    size = asked
    if accelerator.device.type in NOT_PROBED:
        return size
    longest = np.argsort(-examples.lengths, kind="stable")
    while not all(group.gather(_fits(task, accelerator, model, examples, longest[:size].tolist()))):
        if size == 1 or not examples.is_divisible:
            lower = "--max_len" if examples.is_divisible else "--batch_size or --max_len"
            raise RunError(
                f"out of memory with {size} of the longest examples; expected a lower {lower}"
            )
        size //= 2
    return size


def _fits(
    task: Task,
    accelerator: Accelerator,
    model: torch.nn.Module,
    examples: ExampleSet,
    indices: list[int],
) -> bool:
    """Return whether a batch fits into memory.

    All ranks run the same batch, since the ranks of a sharded model have to run together.
    """
    buffers = [(buffer, buffer.clone()) for buffer in model.buffers()]
    # Do not run DistributedDataParallel: after an error, its state would differ between the ranks.
    bare = accelerator.unwrap_model(model).train()
    try:
        trained = [p for p in bare.parameters() if p.requires_grad]
        # Allocate as much memory as the state of AdamW will need.
        moments = [torch.empty_like(p) for p in [*trained, *trained]]
        batch = send_to_device(examples.batch(indices), accelerator.device)
        _, losses = task.forward(bare, batch, len(indices))
        losses["loss"].backward()
        del moments
        fits = True
    except Exception as error:
        is_known = isinstance(error, torch.OutOfMemoryError) or should_reduce_batch_size(error)
        if not is_known:
            reason = f"model/ fails on the longest examples ({describe(error)})"
            raise RankError(reason) from error
        fits = False
    for buffer, before in buffers:
        buffer.copy_(before)
    bare.zero_grad()
    clear_device_cache()
    return fits
