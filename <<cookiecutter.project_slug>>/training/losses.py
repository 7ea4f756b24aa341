"""Accumulate losses without synchronizing with the device at every step."""

import math
from collections import deque
from collections.abc import Mapping
from dataclasses import replace

import torch
from accelerate import Accelerator
from torch import Tensor

from .batches import MicroBatch, Step
from .config import LOSS
from .contract import Task

# Number of calls of `LossMeter.update` whose losses are read together. On an accelerator, reading a
# number waits for all operations queued before it.
READ_EVERY = {"cpu": 1, "other": 16}


class LossMeter:
    """Sums losses over steps.

    Args:
        sums: Sums of this rank so far, by name.

    Attributes:
        latest: Losses of the latest step that was read from the device, by name; empty at first.
            They are this rank's sums over the calls of `update` for this step that have been read,
            multiplied by the number of ranks to estimate the losses over all ranks.
        latest_norm: Gradient norm, before clipping, of the latest step that was read; NaN at first.
        first_bad_step: The first of the steps read so far whose loss is not finite, or None if the
            losses of all these steps are finite.
    """

    def __init__(self, accelerator: Accelerator, sums: Mapping[str, float] | None = None):
        self._sums = dict(sums or {})
        self._num_ranks = accelerator.num_processes
        self._pending: deque[tuple[dict[str, Tensor], Tensor | None, Step]] = deque()
        self._norms: list[float] = []
        self.latest: dict[str, float] = {}
        self._latest_step: tuple[int, int] | None = None
        self.latest_norm = math.nan
        self.first_bad_step: Step | None = None

    def update(self, losses: dict[str, Tensor], step: Step, norm: Tensor | None = None) -> None:
        """Add the losses of this rank in a step, or in one of the micro-batches of a step.

        Args:
            losses: Sums over the target items of this rank, divided by `step.num_items`.
            norm: Norm of the gradient of the step, over all ranks; None in a validation.
        """
        self._pending.append(({name: loss.detach() for name, loss in losses.items()}, norm, step))
        interval = READ_EVERY.get(losses[LOSS].device.type, READ_EVERY["other"])
        if not self.latest or len(self._pending) >= interval:
            self._read()

    def sums(self) -> dict[str, float]:
        """Return this rank's sums over all target items so far, by name."""
        self._read()
        return dict(self._sums)

    def take_norms(self) -> list[float]:
        """Return the finite norms added since the last call."""
        self._read()
        norms = self._norms
        self._norms = []
        return norms

    def _read(self) -> None:
        if not self._pending:
            return
        tensors = [loss for losses, *_ in self._pending for loss in losses.values()]
        tensors += [norm for _, norm, _ in self._pending if norm is not None]
        values = iter(torch.stack(tensors).tolist())  # one transfer for all of them
        for losses, _, step in self._pending:
            self._add({name: next(values) for name in losses}, step)
        for norm in values:
            self.latest_norm = norm
            self._norms += [norm] if math.isfinite(norm) else []
        self._pending.clear()

    def _add(self, values: dict[str, float], step: Step) -> None:
        for name, value in values.items():
            self._sums[name] = self._sums.get(name, 0.0) + value * step.num_items
        index = (step.epoch, step.index)
        before = self.latest if index == self._latest_step else {}
        self._latest_step = index
        self.latest = {
            name: before.get(name, 0.0) + value * self._num_ranks
            for name, value in {LOSS: values[LOSS], **values}.items()  # the bar shows LOSS first
        }
        if self.first_bad_step is None and not math.isfinite(values[LOSS]):
            self.first_bad_step = replace(step, micro_batches=())


def add_losses(total: dict[str, Tensor], losses: dict[str, Tensor], factor: float) -> None:
    """Add the losses of a micro-batch, multiplied by a factor, to the losses of its step."""
    for name, loss in losses.items():
        part = loss.detach() * factor
        total[name] = total[name] + part if name in total else part


def loss_factor(task: Task, micro: MicroBatch) -> float:
    """Return the weight of a micro-batch's loss in the loss of its step."""
    return micro.weight if task.divides_by_items else micro.share
