"""The sum of the losses, and the newest of them, without waiting for each."""

import math
from collections import deque

import torch
from accelerate import Accelerator

from .batches import MicroBatch

# On an accelerator, reading a number waits for all the work queued before it: read in groups.
READ_EVERY = {"cpu": 1, "other": 16}


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
