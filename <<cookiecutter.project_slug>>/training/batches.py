"""Order the examples of an epoch, and assign them to steps, ranks and micro-batches.

For the same data, the order depends only on (seed, epoch, global batch size). The split of a global
batch into micro-batches depends on the batch size, the number of ranks and the type of device.
Apart from dropout and rounding, and unless `Model.loss_couples_examples` is true, the gradient of a
step does not depend on the split, since each loss is divided by the number of target items of the
full step.
"""

import math
import multiprocessing
from collections.abc import Generator, Iterable, Iterator
from dataclasses import dataclass, field, replace
from itertools import islice, tee

import numpy as np
import torch
from accelerate import Accelerator
from torch.utils.data import DataLoader, Sampler

from errors import UserError

from .contract import ExampleSet
from .randomness import seed_all
from .signals import blocked_signals
from .user_code import at_place, user_code

# Maximum number of global batches in a window. A window has at most half an epoch, but at least one
# global batch. Examples are sorted by length (`sort_keys`) inside each window. A wide window
# reduces padding, and a narrow window lets each epoch have different batches.
WINDOW = 256
# Maximum number of tokens per rank and micro-batch, including padding, by device type; a single
# example may be longer. On a CPU, the activations then fit into the caches, and training on long
# texts takes a quarter less time. Other devices have no maximum, since accelerators are faster with
# large micro-batches.
MAX_TOKENS = {"cpu": 2048}
# Without loader processes, collate 8 micro-batches in a row. This is 1.7 times as fast as collating
# each micro-batch just before its use, since code and data remain in the CPU caches.
AHEAD = 8
# Loader processes are forked from a server that has imported these packages once, instead of each
# importing them. Do not add modules of the project: if a run is started from another folder, the
# server would find modules with the same name there.
PRELOADED = ["torch.utils.data", "accelerate", "transformers.modeling_utils", "datasets"]


@dataclass(frozen=True)
class MicroBatch:
    """One rank's part of a micro-batch.

    Attributes:
        indices: Examples to load.
        rng_key: Seed of all random numbers in this micro-batch: seed of the run (0 in a
            validation), epoch, step, rank, and number of the micro-batch.
        weight: 1, or 0 on a rank without examples. Such a rank runs an example of another rank, so
            that all ranks call the same collectives.
        share: Number of target items of these examples (or the sum of their weights), divided by
            `Step.num_items`; 0 if `weight` is 0.
        is_last: Whether this micro-batch completes its step.
        batch: The collated examples.
    """

    indices: list[int]
    rng_key: tuple[int, ...]
    weight: float
    share: float
    is_last: bool
    batch: dict = field(default_factory=dict)


@dataclass(frozen=True)
class Step:
    """One optimizer step, or one batch of a validation.

    Attributes:
        epoch: Index of the epoch.
        index: Index of the step inside its epoch.
        examples: Indices of the examples of the global batch, over all ranks.
        num_items: Number of target items of the global batch, or the sum of their weights, over all
            ranks (1 if this number is 0).
        is_training: Whether this is a training step; False for a validation batch.
        micro_batches: Micro-batches of this rank; each rank has the same number of them.
    """

    epoch: int
    index: int
    examples: list[int]
    num_items: float
    is_training: bool = True
    micro_batches: Iterable[MicroBatch] = ()

    @property
    def place(self) -> str:
        """Description of the step, for error messages."""
        where = f"epoch {self.epoch}" if self.is_training else "validation"
        return f"{where}, step {self.index}"


def epoch_order(keys: np.ndarray, global_batch_size: int, seed: int, epoch: int) -> np.ndarray:
    """Order the examples of an epoch: batches of examples of similar length, in random order.

    Args:
        keys: Sort keys, such as lengths, shape (n,); similar keys are batched together.

    Returns:
        A permutation of the n indices; each global batch is a block of consecutive entries of
        this permutation. If `global_batch_size` does not divide n, the last batch is smaller: a
        random sample of examples of any length.
    """
    rng = np.random.default_rng([seed, epoch])
    order = rng.permutation(len(keys))
    full = len(order) - len(order) % global_batch_size
    window = max(1, min(WINDOW, full // global_batch_size // 2)) * global_batch_size
    for begin in range(0, full, window):
        part = order[begin : min(begin + window, full)]
        part[:] = part[np.argsort(keys[part], kind="stable")]
    batches = order[:full].reshape(-1, global_batch_size)
    order[:full] = batches[rng.permutation(len(batches))].ravel()
    return order


def split(
    batch: np.ndarray, keys: np.ndarray, batch_size: int, num_ranks: int, rotation: int
) -> list[list[np.ndarray]]:
    """Split a global batch into micro-batches; each contains examples of similar length.

    Args:
        batch: Indices of any number of examples.
        keys: Sort keys of all examples, such as lengths, shape (n,).
        batch_size: Maximum number of examples per rank and micro-batch.
        rotation: Number of ranks by which the parts of a micro-batch are rotated. Pass a different
            number in each step, so that the longest examples are not always on the same rank.

    Returns:
        For each micro-batch, the indices of the examples of each rank.
    """
    batch = batch[np.argsort(keys[batch], kind="stable")]
    count = math.ceil(len(batch) / (batch_size * num_ranks))
    parts = np.array_split(batch, count * num_ranks)
    ranks = (np.arange(num_ranks) + rotation) % num_ranks
    return [[parts[n * num_ranks + rank] for rank in ranks] for n in range(count)]


class Batches:
    """Divides a data set into steps, and loads this rank's examples of each step.

    Args:
        batch_size: Maximum number of examples per rank and micro-batch.
        global_batch_size: Number of examples in a step, over all ranks. Default: `batch_size` times
            the number of ranks.
        seed: Seed of the order of each epoch. Default: no shuffling; the examples with the largest
            sort keys (by default, the longest examples) come first.
        num_workers: Number of loader processes.
    """

    def __init__(
        self,
        examples: ExampleSet,
        accelerator: Accelerator,
        batch_size: int,
        global_batch_size: int | None = None,
        *,
        seed: int | None = None,
        num_workers: int = 0,
    ):
        self.examples = examples
        self.rank = accelerator.process_index
        self.num_ranks = accelerator.num_processes
        self.batch_size = batch_size
        self.global_batch_size = global_batch_size or batch_size * self.num_ranks
        self.seed = seed
        self.max_tokens = MAX_TOKENS.get(accelerator.device.type) if examples.is_divisible else None
        self._order = _PlannedOrder()
        if num_workers:
            multiprocessing.set_forkserver_preload(PRELOADED)
        self._loader: DataLoader | None = DataLoader(
            _Loading(examples),
            sampler=self._order,
            batch_size=None,
            num_workers=num_workers,
            persistent_workers=num_workers > 0,
            # A forked process would copy locks that threads of gloo and autograd hold, and hang.
            multiprocessing_context="forkserver" if num_workers else None,
            pin_memory=torch.cuda.is_available(),
        )

    def __len__(self) -> int:
        """Return the number of steps in an epoch."""
        return math.ceil(len(self.examples) / self.global_batch_size)

    def steps(self, epoch: int = 0, start: int = 0) -> Generator[Step, None, None]:
        """Yield the steps of an epoch.

        Args:
            start: Number of examples to skip at the beginning of the epoch. They are not loaded.
        """
        plans, ahead = tee(self._plan(epoch, start))
        self._order.micro_batches = (micro for step in ahead for micro in step.micro_batches)
        loaded = self._load()
        for plan in plans:
            planned = list(plan.micro_batches)
            yield replace(plan, micro_batches=_filled(plan.place, planned, loaded))

    def _plan(self, epoch: int, start: int) -> Iterator[Step]:
        """Yield the steps of an epoch; the examples of their micro-batches are not loaded yet."""
        examples = self.examples
        if self.seed is None:
            order = np.argsort(-examples.sort_keys, kind="stable")
        else:
            order = epoch_order(examples.sort_keys, self.global_batch_size, self.seed, epoch)
        for begin in range(start, len(order), self.global_batch_size):
            index = begin // self.global_batch_size
            batch = order[begin : begin + self.global_batch_size]
            num_items = examples.num_items[batch].sum().item() or 1
            yield Step(
                epoch=epoch,
                index=index,
                examples=batch.tolist(),
                num_items=num_items,
                is_training=self.seed is not None,
                micro_batches=self._split(batch, epoch, index, num_items),
            )

    def _split(
        self, batch: np.ndarray, epoch: int, index: int, num_items: float
    ) -> list[MicroBatch]:
        examples = self.examples
        size = self.batch_size
        if self.max_tokens is not None:
            longest = max(1, int(examples.lengths[batch].max()))
            size = min(size, max(1, self.max_tokens // longest))
        parts = split(batch, examples.sort_keys, size, self.num_ranks, rotation=index)
        micro_batches = []
        for number, ranks in enumerate(parts, 1):
            own = ranks[self.rank]
            micro_batches.append(
                MicroBatch(
                    indices=own.tolist() or batch[:1].tolist(),
                    rng_key=(self.seed or 0, epoch, index, self.rank, number),
                    weight=float(len(own) > 0),
                    share=float(examples.num_items[own].sum()) / num_items,
                    is_last=number == len(parts),
                )
            )
        return micro_batches

    def close(self) -> None:
        """End the loader processes. Close all generators returned by `steps` first.

        Without this call, torch would send SIGTERM to the processes, which block this signal.
        """
        self._loader = None

    def _load(self) -> Iterator[dict | Exception]:
        assert self._loader is not None
        if not self._loader.num_workers:
            loaded = iter(self._loader)
            while group := list(islice(loaded, AHEAD)):
                yield from group
            return
        with blocked_signals():
            loaded = iter(self._loader)
        yield from loaded


def _filled(
    place: str, planned: list[MicroBatch], loaded: Iterator[dict | Exception]
) -> Iterator[MicroBatch]:
    for micro in planned:
        with at_place(place, micro.indices):  # the loader fails if one of its processes was killed
            batch = next(loaded)
            if isinstance(batch, Exception):
                raise batch
        yield replace(micro, batch=batch)


class _PlannedOrder(Sampler):
    """Sampler of the micro-batches of the current epoch."""

    def __init__(self) -> None:
        self.micro_batches: Iterator[MicroBatch] = iter(())

    def __iter__(self) -> Iterator[MicroBatch]:
        return self.micro_batches


class _Loading(torch.utils.data.Dataset):
    """Loads and collates the examples of a micro-batch, in a loader process if there is one."""

    def __init__(self, examples: ExampleSet):
        self.examples = examples

    def __getitem__(self, micro: MicroBatch) -> dict | Exception:
        """Return the batch, or a UserError if the user's code raised an exception.

        `_filled` raises this error in the step of the micro-batch.
        """
        seed_all(*micro.rng_key)  # a data set may also draw random numbers
        try:
            with user_code("model/dataset.py: these examples cannot be loaded"):
                return self.examples.batch(micro.indices)
        except UserError as error:
            return error
