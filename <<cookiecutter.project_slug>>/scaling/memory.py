"""How many examples fit into the memory of an accelerator at once."""

import numpy as np
import torch
from accelerate import Accelerator
from accelerate.utils import send_to_device

from errors import RunError
from training.peers import Peers
from training.state import TrainingState

from .sharding import is_zero

# Where nothing is to be caught: the system ends a process that takes too much.
UNTRIED = {"cpu"}


def fit_batch_size(
    accelerator: Accelerator, peers: Peers, state: TrainingState, model: torch.nn.Module, dataset
) -> None:
    """Halve the `batch_size` of a run until a pass of the longest examples fits.

    Tried forward and backward, before the first step only. Global batches stay as they are: each
    is cut into more passes.

    Raises:
        RunError: not even one example fits.
    """
    size = asked = state.args["batch_size"]
    if accelerator.device.type in UNTRIED or is_zero(model):  # its engine allows no try
        return
    longest = np.argsort(-dataset.lengths, kind="stable")
    while not all(peers.gather(_fits(accelerator, model, dataset, longest[:size].tolist()))):
        if size == 1:
            raise RunError("out of memory with one of the longest texts; try a lower --max_len")
        size //= 2
    state.args["batch_size"] = size
    if size < asked and peers.is_main:
        print(
            f"Out of memory with --batch_size {asked}: it is {size} now, and --accumulation is "
            f"{asked // size} times as large; {state.global_batch_size} in a step as before"
        )


def _fits(accelerator: Accelerator, model: torch.nn.Module, dataset, examples: list[int]) -> bool:
    """Try these examples. All processes try the same ones: sharded, they have to go together."""
    buffers = [(buffer, buffer.clone()) for buffer in model.buffers()]
    # Not through DistributedDataParallel: its processes would no longer agree after a failure.
    bare = accelerator.unwrap_model(model).train()
    try:
        # What AdamW is going to hold from the first step on.
        moments = [torch.empty_like(p) for p in bare.parameters() if p.requires_grad for _ in "mv"]
        inputs = dataset.collate([dataset[index] for index in examples])
        bare(**send_to_device(inputs, accelerator.device)).loss.backward()
        fits = True
    except torch.OutOfMemoryError:
        fits = False
    moments = []  # noqa: F841 - given back before the next try
    for buffer, before in buffers:
        buffer.copy_(before)
    bare.zero_grad()
    torch.cuda.empty_cache()
    return fits
