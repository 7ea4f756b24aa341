"""Which examples a step takes, in which order, and which process works on which of them.

The order is a function of (seed, epoch, global batch size) alone. How a global batch is cut into
forward passes depends on the processes at hand, but not what is computed: every micro-batch
carries the label items of its whole global batch, which is what its loss is divided by.
"""

from collections.abc import Iterator
from dataclasses import dataclass
from itertools import islice

import numpy as np
import torch
from accelerate import Accelerator
from torch.utils.data import DataLoader, Sampler

from .randomness import seed_all

# Examples are sorted by length inside windows of this many global batches, or of half an epoch:
# wide enough to leave little padding, narrow enough to mix the batches anew in every epoch.
WINDOW = 256
# The most tokens in a forward pass, padding included. What a CPU computes on has to fit its caches:
# measured, long texts go a quarter faster. An accelerator likes large passes.
MAX_TOKENS = {"cpu": 2048}

# So many are made at a time, where no worker does it: after a step, neither the code for it nor the
# data are in the CPU's caches. Measured, eight at a time take three fifths of the time.
AHEAD = 8


@dataclass(frozen=True)
class MicroBatch:
    """One process's share of one forward pass.

    Attributes:
        indices: The examples to take.
        seed: What all randomness of this forward pass follows from.
        num_items: Label items of the whole global batch, over all processes.
        global_batch: The examples of the whole global batch, over all processes.
        weight: 1; or 0 where there are more processes than examples, and one without work takes
            part in the communication on an example that then counts nothing.
        ends_step: Whether the global batch is complete after this one.
    """

    indices: list[int]
    seed: tuple[int, ...]
    num_items: int
    global_batch: list[int]
    weight: float
    ends_step: bool


def epoch_order(keys: np.ndarray, global_batch_size: int, seed: int, epoch: int) -> np.ndarray:
    """Order the examples of an epoch: batches of like length, in random order.

    Args:
        keys: Alike where lengths are alike, shape (n,).

    Returns:
        A permutation of the n indices. Each run of `global_batch_size` is a global batch; what
        remains is the smaller last one, drawn like any other example.
    """
    rng = np.random.default_rng([seed, epoch])
    order = rng.permutation(len(keys))
    whole = len(order) - len(order) % global_batch_size
    window = max(1, min(WINDOW, whole // global_batch_size // 2)) * global_batch_size
    for begin in range(0, whole, window):
        part = order[begin : min(begin + window, whole)]
        part[:] = part[np.argsort(keys[part], kind="stable")]
    batches = order[:whole].reshape(-1, global_batch_size)
    order[:whole] = batches[rng.permutation(len(batches))].ravel()
    return order


def share(
    batch: np.ndarray, keys: np.ndarray, batch_size: int, num_processes: int, turn: int
) -> list[list[np.ndarray]]:
    """Cut a global batch into as many forward passes for each process, of like length in each.

    Args:
        batch: Indices of the examples, in any number.
        batch_size: The most examples in a forward pass of one process.
        turn: Shifts the longest texts from process to process.

    Returns:
        For each forward pass, the indices of each process.
    """
    batch = batch[np.argsort(keys[batch], kind="stable")]
    passes = -(-len(batch) // (batch_size * num_processes))
    parts = np.array_split(batch, passes * num_processes)
    ranks = (np.arange(num_processes) + turn) % num_processes
    return [[parts[n * num_processes + rank] for rank in ranks] for n in range(passes)]


class Plan(Sampler):
    """The micro-batches of one process, from a point in an epoch to its end."""

    def __init__(
        self,
        dataset,
        accelerator: Accelerator,
        batch_size: int,
        global_batch_size: int,
        seed: int | None,
    ):
        self.lengths, self.num_items = dataset.lengths, dataset.num_items
        self.keys = getattr(dataset, "sort_keys", dataset.lengths)
        self.rank, self.world = accelerator.process_index, accelerator.num_processes
        self.batch_size, self.global_batch_size = batch_size, global_batch_size
        self.max_tokens = MAX_TOKENS.get(accelerator.device.type)
        self.seed = seed
        self.epoch = self.start = 0

    def __iter__(self) -> Iterator[MicroBatch]:
        if self.seed is None:
            order = np.argsort(-self.keys, kind="stable")
        else:
            order = epoch_order(self.keys, self.global_batch_size, self.seed, self.epoch)
        for begin in range(self.start, len(order), self.global_batch_size):
            step = begin // self.global_batch_size
            batch = order[begin : begin + self.global_batch_size]
            members = batch.tolist()
            size = self.batch_size
            if self.max_tokens is not None:
                size = min(size, max(1, self.max_tokens // int(self.lengths[batch].max())))
            passes = share(batch, self.keys, size, self.world, turn=step)
            for number, parts in enumerate(passes, 1):
                mine = parts[self.rank]
                yield MicroBatch(
                    indices=mine.tolist() or members[:1],
                    seed=(self.seed or 0, self.epoch, step, self.rank, number),
                    num_items=max(1, int(self.num_items[batch].sum())),
                    global_batch=members,
                    weight=float(len(mine) > 0),
                    ends_step=number == len(passes),
                )


class Batches:
    """The batches of this process, made into tensors by worker processes.

    Args:
        dataset: Has `lengths`, `num_items` and `collate`: see `model/dataset.py`.
        batch_size: The most examples in a forward pass of one process.
        global_batch_size: Examples in a step, over all processes; one forward pass of each when
            not given.
        seed: Gives each epoch an order of its own; without one, the longest come first.
    """

    def __init__(
        self,
        dataset,
        accelerator: Accelerator,
        batch_size: int,
        global_batch_size: int | None = None,
        seed: int | None = None,
        num_workers: int = 0,
    ):
        self.dataset = dataset
        self.global_batch_size = global_batch_size or batch_size * accelerator.num_processes
        self._plan = Plan(dataset, accelerator, batch_size, self.global_batch_size, seed)
        self._loader = DataLoader(
            _Fetch(dataset),
            sampler=self._plan,
            batch_size=None,
            num_workers=num_workers,
            persistent_workers=num_workers > 0,
            # A plain fork copies the locks that gloo's and autograd's threads hold: some hang.
            multiprocessing_context="forkserver" if num_workers else None,
            pin_memory=torch.cuda.is_available(),
        )

    def __len__(self) -> int:
        """Steps in an epoch."""
        return -(-len(self.dataset) // self.global_batch_size)

    def epoch(
        self, epoch: int = 0, start: int = 0
    ) -> Iterator[tuple[dict[str, torch.Tensor], MicroBatch]]:
        """Load an epoch from the example `start` on; those before it cost nothing."""
        self._plan.epoch, self._plan.start = epoch, start
        loaded = iter(self._loader)
        while group := list(islice(loaded, 1 if self._loader.num_workers else AHEAD)):
            yield from group


class _Fetch(torch.utils.data.Dataset):
    """Turns a micro-batch into tensors, in a worker process."""

    def __init__(self, dataset):
        self.dataset = dataset

    def __getitem__(self, micro: MicroBatch) -> tuple[dict[str, torch.Tensor], MicroBatch]:
        seed_all(*micro.seed)  # a data set may draw at random, too
        if hasattr(self.dataset, "__getitems__"):
            examples = self.dataset.__getitems__(micro.indices)
        else:
            examples = [self.dataset[index] for index in micro.indices]
        return self.dataset.collate(examples), micro
