"""The training data of each epoch: all data, or the next files with `--files_per_epoch`."""

import math
import shutil
import zlib
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import datasets
import numpy as np
from accelerate import Accelerator

from reading.remote import fetch, list_remote
from reading.sources import list_files

from .batches import Batches
from .config import RunConfig
from .contract import ExampleSet
from .distributed import RankGroup
from .hold_out import hold_out


class TrainData:
    """Opens the data of an epoch, and divides them into batches.

    With `--files_per_epoch N`, an epoch uses at most N of the files. Each file is used once before
    any is used again, in an order that depends on the seed. The files of an epoch are downloaded
    and tokenized when the epoch starts. Downloads and tokens are removed from the disk before the
    next epoch starts.

    Args:
        read: Function that is called as `read(source, schema)`, and returns the examples.

    Attributes:
        examples: Examples of the current epoch.
        held_out: Examples held out for validation, if there is no `--valid_input`.
    """

    def __init__(
        self,
        config: RunConfig,
        accelerator: Accelerator,
        group: RankGroup,
        read: Callable[[str | list[str], dict], ExampleSet],
    ):
        self._config = config
        self._accelerator = accelerator
        self._group = group
        self._read = read
        run = zlib.crc32(str(Path(config.outdir).resolve()).encode())
        self._folder = Path(datasets.config.HF_DATASETS_CACHE, "epochs", f"{run:08x}")
        self._schema: dict = {} if config.resumed is None else config.resumed.schema
        self._batches: Batches | None = None
        self.held_out: ExampleSet | None = None
        epoch = 0 if config.resumed is None else config.resumed.state.current_epoch
        self.examples = self._open(epoch)

    def batches(self, epoch: int, batch_size: int, global_batch_size: int) -> Batches:
        """Return the batches of an epoch; every rank has to call this."""
        if self._config.files_per_epoch is not None and epoch != self._opened:
            if self._batches is not None:
                self._batches.close()
            self.examples = self._open(epoch)
            self._batches = None
        if self._batches is None:
            self._batches = Batches(
                self.examples,
                self._accelerator,
                batch_size,
                global_batch_size,
                seed=self._config.seed,
                num_workers=self._config.num_workers,
            )
        return self._batches

    def remove_files(self) -> None:
        """Remove the downloads and tokens of the last epoch."""
        if self._group.is_local_main:
            shutil.rmtree(self._folder, ignore_errors=True)

    def _open(self, epoch: int) -> ExampleSet:
        source = self._config.train_input
        count = self._config.files_per_epoch
        self._opened = epoch
        with self._group.in_agreement(), self._group.local_main_first():
            if count is None:
                examples = self._hold_out(self._read(source, self._schema))
            else:
                folder = self._folder / str(epoch)
                if self._group.is_local_main:
                    self._remove_all_but(folder)
                with _cache_folder(folder):
                    files = [fetch(file, folder) for file in self._files(epoch, count)]
                    examples = self._read(files, self._schema)
        self._schema = examples.schema
        return examples

    def _hold_out(self, examples: ExampleSet) -> ExampleSet:
        if self._config.valid_input is not None:
            return examples
        config = self._config
        rest, self.held_out = hold_out(examples, config.valid_size, config.seed, config.valid_fold)
        return rest

    def _files(self, epoch: int, count: int) -> list[str]:
        parts = list_files(self._config.train_input)
        files = [file for part in parts for file in list_remote(part)]
        turns = math.ceil(len(files) / count)
        rng = np.random.default_rng([self._config.seed, epoch // turns])
        order = rng.permutation(len(files))
        return [files[n] for n in np.array_split(order, turns)[epoch % turns]]

    def _remove_all_but(self, kept: Path) -> None:
        for folder in set(self._folder.glob("*")) - {kept}:
            shutil.rmtree(folder)


@contextmanager
def _cache_folder(folder: Path) -> Iterator[None]:
    """Set the cache folder of `datasets` inside the block."""
    before = datasets.config.HF_DATASETS_CACHE
    datasets.config.HF_DATASETS_CACHE = folder
    try:
        yield
    finally:
        datasets.config.HF_DATASETS_CACHE = before
