"""Which examples a step takes, in which order, and which process works on which of them.

The order is a function of (seed, epoch, global batch size) alone. How a global batch is cut into
micro-batches depends on the processes at hand, but not what is computed: every micro-batch
carries the label items of its whole global batch, which is what its loss is divided by.
"""

import os
from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
import torch
from torch.utils.data import DataLoader, Sampler

from .randomness import seed_all

# Examples are sorted by length inside windows of this many global batches: wide enough to leave
# little padding, narrow enough to mix the batches anew in every epoch.
WINDOW = 64


@dataclass(frozen=True)
class MicroBatch:
    """One process's share of one forward pass.

    Attributes:
        indices: The examples to take from the data set.
        seed: What all randomness of this forward pass follows from.
        num_items: Label items of the whole global batch, over all processes.
        num_examples: Examples of the whole global batch, over all processes.
        weight: 1, or 0 where there are more processes than examples: a process without work
            still takes part in the communication, on an example that then counts nothing.
        ends_step: Whether the global batch is complete after this one.
    """

    indices: list[int]
    seed: tuple[int, ...]
    num_items: int
    num_examples: int
    weight: float
    ends_step: bool


def epoch_order(lengths: np.ndarray, global_batch_size: int, seed: int, epoch: int) -> np.ndarray:
    """Order the examples of an epoch: batches of like length, in random order.

    Each run of `global_batch_size` indices is a global batch; what remains is the smaller last
    one, drawn like any other example.

    Args:
        lengths: Tokens of each example, shape (n,).

    Returns:
        A permutation of the n indices, shape (n,).
    """
    rng = np.random.default_rng([seed, epoch])
    order = rng.permutation(len(lengths))
    whole = len(order) - len(order) % global_batch_size
    window = WINDOW * global_batch_size
    for begin in range(0, whole, window):
        part = order[begin : min(begin + window, whole)]
        part[:] = part[np.argsort(lengths[part], kind="stable")]
    batches = order[:whole].reshape(-1, global_batch_size)
    order[:whole] = batches[rng.permutation(len(batches))].ravel()
    return order


def share(
    batch: np.ndarray, lengths: np.ndarray, batch_size: int, num_processes: int, turn: int
) -> Iterator[list[np.ndarray]]:
    """Cut a global batch into micro-batches for all processes: as many for each, of like length.

    Args:
        batch: Indices of the examples, in any number.
        batch_size: The most examples in a micro-batch.
        turn: Shifts the longest micro-batches from process to process.

    Yields:
        For each round of forward passes, the indices of each process.
    """
    batch = batch[np.argsort(lengths[batch], kind="stable")]
    rounds = -(-len(batch) // (batch_size * num_processes))
    cells = np.array_split(batch, rounds * num_processes)
    for begin in range(0, len(cells), num_processes):
        turned = begin + (np.arange(num_processes) + turn) % num_processes
        yield [cells[cell] for cell in turned]


class Batches:
    """The micro-batches of one process, loaded by worker processes.

    Args:
        dataset: Has `lengths`, `num_items` and `collate`, see `model/dataset.py`.
        batch_size: The most examples in a forward pass of one process.
        global_batch_size: Examples in a step, over all processes.
        shuffle: A new order in each epoch; else always the longest first.
    """

    def __init__(
        self,
        dataset,
        batch_size: int,
        global_batch_size: int,
        *,
        shuffle: bool,
        seed: int = 0,
        process_index: int = 0,
        num_processes: int = 1,
        num_workers: int = 0,
    ):
        self.dataset = dataset
        self.batch_size = batch_size
        self.global_batch_size = global_batch_size
        self.shuffle = shuffle
        self.seed = seed
        self.process_index = process_index
        self.num_processes = num_processes
        self.plan = _Plan(self)
        # The tokens are made by now; forked workers must not inherit the tokenizer's threads.
        os.environ["TOKENIZERS_PARALLELISM"] = "false"
        self.loader = DataLoader(
            _Fetch(dataset),
            sampler=self.plan,
            batch_size=None,
            collate_fn=_unchanged,
            num_workers=num_workers,
            persistent_workers=num_workers > 0,
            pin_memory=torch.cuda.is_available(),
        )

    def __len__(self) -> int:
        """Steps in an epoch."""
        return -(-len(self.dataset) // self.global_batch_size)

    def epoch(
        self, epoch: int = 0, start: int = 0
    ) -> Iterator[tuple[dict[str, torch.Tensor], MicroBatch]]:
        """Load the micro-batches of an epoch, from the example `start` on, which costs nothing."""
        self.plan.epoch, self.plan.start = epoch, start
        return iter(self.loader)

    def micro_batches(self, epoch: int, start: int) -> Iterator[MicroBatch]:
        lengths, items = self.dataset.lengths, self.dataset.num_items
        if self.shuffle:
            order = epoch_order(lengths, self.global_batch_size, self.seed, epoch)
        else:
            order = np.argsort(-lengths, kind="stable")
        for begin in range(start, len(order), self.global_batch_size):
            step = begin // self.global_batch_size
            batch = order[begin : begin + self.global_batch_size]
            rounds = list(share(batch, lengths, self.batch_size, self.num_processes, step))
            for number, cells in enumerate(rounds, 1):
                mine = cells[self.process_index]
                yield MicroBatch(
                    indices=(mine if len(mine) else batch[:1]).tolist(),
                    seed=(self.seed, epoch, step, self.process_index, number),
                    num_items=int(items[batch].sum()),
                    num_examples=len(batch),
                    weight=float(len(mine) > 0),
                    ends_step=number == len(rounds),
                )


class _Plan(Sampler):
    """What `DataLoader` draws from; one loader, and its workers, serve all epochs."""

    def __init__(self, batches: Batches):
        self.batches = batches
        self.epoch = self.start = 0

    def __iter__(self) -> Iterator[MicroBatch]:
        return self.batches.micro_batches(self.epoch, self.start)


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


def _unchanged(item):
    return item
