"""Compare the time of a step in the loop of train.py with that in two bare loops.

python loop.py ARGUMENTS OF train.py      (run by scale.py, in the folder of a project)

A bare loop consists of the forward pass, the backward pass and the optimizer step, on batches that
are already loaded. One bare loop also clips gradients; the other does not. The three loops run in
the same process and compute each step one after another, in an order that changes from step to
step, so that other load on the machine and the state of the memory allocator affect all of them
equally.

The script prints three numbers, which are medians over parts of the run: the milliseconds of a step
of the bare loop without clipping, and the additional time of train.py relative to the bare loop
without clipping and relative to the bare loop with clipping.
"""

import contextlib
import sys
import time
from collections.abc import Iterator
from dataclasses import replace
from itertools import cycle, permutations
from pathlib import Path
from statistics import median
from typing import Any

import torch
from accelerate.utils import send_to_device

sys.path.insert(0, str(Path.cwd()))

import train  # noqa: E402
from training.batches import MicroBatch, Step  # noqa: E402
from training.contract import model_inputs  # noqa: E402
from training.run import Run  # noqa: E402

PART = 48  # steps in a part of the run: eight steps in each order of the loops
LIMITS = {"bare": None, "clipped": 1.0}  # maximum norm of the gradient
OURS = "ours"


class Comparison:
    """Repeats each step of a run with the bare loops.

    Attributes:
        seconds: For each step, the time of each loop.
    """

    def __init__(self) -> None:
        self.seconds: list[dict[str, float]] = []
        self._orders: Iterator[tuple[str, ...]] = cycle(permutations([OURS, *LIMITS]))
        self._train_step = train.train_step
        self._save_point = train.save_point
        self._start = time.perf_counter()
        self._rest: tuple[str, ...] = ()
        self._step: Step | None = None
        self._micro_batches: list[MicroBatch] = []

    def train_step(self, run: Run, step: Step) -> dict[str, torch.Tensor]:
        self._step = step
        self._micro_batches = list(step.micro_batches)
        made = time.perf_counter()
        order = next(self._orders)
        position = order.index(OURS)
        self.seconds.append({})
        self._run_bare(order[:position], run, step)
        self._rest = order[position + 1 :]
        self._start += time.perf_counter() - made  # exclude the time of the bare loops
        return self._train_step(run, replace(step, micro_batches=iter(self._micro_batches)))

    def save_point(self, run: Run, is_due: bool = False) -> None:
        """Record the end of a step. Validation also calls this method."""
        self._save_point(run, is_due)
        if self._step is None:
            return
        self.seconds[-1][OURS] = time.perf_counter() - self._start
        self._run_bare(self._rest, run, self._step)
        self._step = None
        self._start = time.perf_counter()

    def _run_bare(self, names: tuple[str, ...], run: Run, step: Step) -> None:
        optimizer: Any = run.optimizer
        found_inf = optimizer.found_inf
        optimizer.found_inf = optimizer.grad_scale = None
        for name in names:
            start = time.perf_counter()
            for micro in self._micro_batches:
                batch = send_to_device(model_inputs(micro.batch), run.accelerator.device)
                run.model(**batch, num_items_in_batch=step.num_items).loss.backward()
            if LIMITS[name] is not None:
                torch.nn.utils.clip_grad_norm_(run.model.parameters(), LIMITS[name])
            optimizer.step()
            optimizer.zero_grad()
            self.seconds[-1][name] = time.perf_counter() - start
        optimizer.found_inf = found_inf


def main() -> None:
    comparison = Comparison()
    train.train_step = comparison.train_step
    train.save_point = comparison.save_point
    with contextlib.redirect_stdout(sys.stderr):
        train.main(sys.argv[1:])
    seconds = comparison.seconds
    parts = [seconds[n : n + PART] for n in range(PART, len(seconds) - PART + 1, PART)]
    sums = [{name: sum(step[name] for step in part) for name in part[0]} for part in parts]
    print(1000 * median(part["bare"] / PART for part in sums))
    print(median(part[OURS] / part["bare"] - 1 for part in sums))
    print(median(part[OURS] / part["clipped"] - 1 for part in sums))


if __name__ == "__main__":
    main()
