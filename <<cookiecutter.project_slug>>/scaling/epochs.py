"""The training data of each epoch: all of it, or the next files of more than can be held."""

import argparse
import shutil
import zlib
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import datasets
import numpy as np
from accelerate import Accelerator
from torch import Tensor

from errors import RunError
from reading.remote import fetch, list_remote
from reading.sources import list_files
from training.batches import Batches
from training.peers import Peers
from training.state import TrainingState


class Epochs:
    """Opens the data that an epoch learns from.

    With `--files_per_epoch`, these are so many of the files; each is taken once before any is taken
    again, in an order that follows from the seed. They are fetched and tokenized when their epoch
    begins, and what that left on the disk is removed before the next one begins.

    Args:
        args: The arguments of the run.
        read: Called as `read(source, **schema)`, with what there is of a schema to follow; gives a
            data set.

    Attributes:
        dataset: That of the current epoch.

    Raises:
        RunError: the length of the run would not be known.
    """

    def __init__(
        self,
        args: argparse.Namespace,
        accelerator: Accelerator,
        peers: Peers,
        read: Callable[..., Any],
    ):
        self._peers, self._read, self._source, self._seed = peers, read, args.train_input, args.seed
        self._batches: Batches | None = None
        self._accelerator, self._count = accelerator, args.files_per_epoch
        if self._count is not None and args.max_steps is None:
            raise RunError(
                f"--files_per_epoch {self._count}: expected --max_steps, too, since how many steps "
                "an epoch has is known only when its files have been read"
            )
        run = zlib.crc32(str(Path(args.outdir).resolve()).encode())
        self._folder = Path(datasets.config.HF_DATASETS_CACHE, "epochs", f"{run:08x}")
        self._schema, epoch = {}, 0
        if args.restore_dir is not None and self._count is not None:
            state = TrainingState.read(Path(args.restore_dir))
            self._schema, epoch = state.schema, state.current_epoch
        self._open(epoch)

    def batches(self, state: TrainingState) -> Batches:
        """Give the batches of the state's epoch. All processes have to call this."""
        if self._count is not None and state.current_epoch != self._opened:
            self._open(state.current_epoch)
            state.take_up(self.dataset)
            self._batches = None
        if self._batches is None:
            self._batches = Batches(
                self.dataset,
                self._accelerator,
                state.args["batch_size"],
                state.global_batch_size,
                state.args["seed"],
                state.args["num_workers"],
            )
        return self._batches

    def _open(self, epoch: int) -> None:
        if self._count is None:
            with self._peers.local_main_first():
                self.dataset = self._read(self._source)
        else:
            folder = self._folder / str(epoch)
            self._remove_all_but(folder)
            with self._peers.local_main_first(), _cached_in(folder):
                files = [fetch(file, folder) for file in self._files(epoch, self._count)]
                self.dataset = self._read(files, **self._schema)
            self._schema = self.dataset.schema
        self._opened = epoch

    def collate(self, examples: list[int]) -> dict[str, Tensor]:
        """Make a batch of these examples of the current epoch."""
        return self.dataset.collate([self.dataset[index] for index in examples])

    def close(self) -> None:
        """Remove what is left of the files of the last epoch."""
        if self._peers.is_local_main:
            shutil.rmtree(self._folder, ignore_errors=True)

    def _files(self, epoch: int, count: int) -> list[str]:
        files = [file for part in list_files(self._source) for file in list_remote(part)]
        turns = -(-len(files) // count)
        order = np.random.default_rng([self._seed, epoch // turns]).permutation(len(files))
        return [files[n] for n in np.array_split(order, turns)[epoch % turns]]

    def _remove_all_but(self, kept: Path) -> None:
        if self._peers.is_local_main:
            for folder in set(self._folder.glob("*")) - {kept}:
                shutil.rmtree(folder)


@contextmanager
def _cached_in(folder: Path) -> Iterator[None]:
    before, datasets.config.HF_DATASETS_CACHE = datasets.config.HF_DATASETS_CACHE, folder
    try:
        yield
    finally:
        datasets.config.HF_DATASETS_CACHE = before
