"""What a run shows while it goes on, and the losses it shows."""

import math
from collections import deque

import torch
from accelerate import Accelerator
from tqdm import tqdm

from .batches import MicroBatch
from .state import TrainingState

# On an accelerator, reading a number waits for all the work queued before it: read in groups.
READ_EVERY = {"cpu": 1, "other": 16}


def progress_bar(
    accelerator: Accelerator, epoch: int, phase: str, total: int, initial: int = 0
) -> tqdm:
    """`[Epoch 0] [TRAIN]:  12%|█▏        | 520/4387 [02:31<20:56,  3.08it/s, loss=2.56]`"""
    return tqdm(
        total=total,
        initial=initial,
        desc=f"[Epoch {epoch}] [{phase}]",
        disable=not accelerator.is_main_process,
        dynamic_ncols=True,
    )


def announce(
    accelerator: Accelerator, state: TrainingState, model: torch.nn.Module, notes: list[str]
) -> None:
    """Say what is about to be run."""
    size = sum(parameter.numel() for parameter in model.parameters()) / 1e6
    steps = f"{state.step} of {state.total_steps}" if state.step else f"{state.total_steps}"
    accelerator.print(
        f"{size:,.1f} M parameters from {state.args['model_id']}; "
        f"{state.data['examples']:,} examples, {state.global_batch_size} in a step; {steps} steps",
        *notes,
        sep="\n",
    )


def conclude(accelerator: Accelerator, state: TrainingState) -> None:
    """Say what was reached, and where it is."""
    if state.is_stuck and state.step < state.total_steps:
        accelerator.print(f"Ended early: no better loss in {state.args['patience']} epochs")
    if not state.best:
        accelerator.print("No validation loss was a number: there is no best/")
        return
    scores = [(name, value) for name, value in state.best.items() if name not in ("epoch", "count")]
    reached = ", ".join(f"{name} {value:.4g}" for name, value in scores)
    accelerator.print(f"Best: {state.best['epoch']}, {reached}: see {state.args['outdir']}/best")


class LossSum:
    """Adds up losses that are still being computed, without waiting for each.

    Attributes:
        last: The newest loss that has been read, scaled up from this process to all.
        bad: The end of the first step, of those read, whose loss is not a finite number.
    """

    def __init__(self, accelerator: Accelerator, start: float = 0.0):
        self._sum, self._world = start, accelerator.num_processes
        self._pending: deque[tuple[torch.Tensor, MicroBatch]] = deque()
        self.last: float | None = None
        self.bad: MicroBatch | None = None

    def add(self, mean: torch.Tensor, micro: MicroBatch) -> None:
        """Take note of a loss, a scalar, that is the mean of `micro.num_items` label items."""
        self._pending.append((mean.detach(), micro))
        patience = READ_EVERY.get(mean.device.type, READ_EVERY["other"])
        if self.last is None or len(self._pending) >= patience:
            self._read()

    def total(self) -> float:
        """The sum over all label items so far."""
        self._read()
        return self._sum

    def _read(self) -> None:
        if not self._pending:
            return
        means = torch.stack([mean for mean, _ in self._pending]).tolist()
        for mean, (_, micro) in zip(means, self._pending, strict=True):
            self._sum += mean * micro.num_items
            if self.bad is None and not math.isfinite(mean):
                self.bad = micro
        self._pending.clear()
        self.last = means[-1] * self._world
