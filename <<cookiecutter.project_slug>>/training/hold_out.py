"""Hold out a part of the training data for validation, if there is no `--valid_input`."""

import zlib
from collections.abc import Iterator
from typing import Any

import numpy as np
import torch

from errors import RunError

from .contract import ExampleSet, hash_example


class Part(torch.utils.data.Dataset):
    """Some examples of a data set, with the attributes of a `TaskDataset`."""

    def __init__(self, whole: ExampleSet, indices: np.ndarray):
        self._whole = whole
        self._indices = indices
        self.schema = whole.schema
        self.collate = whole.collate
        self.describe = whole.describe
        self.sort_keys = whole.sort_keys[indices]
        self.fingerprint = zlib.crc32(indices.astype("<i8").tobytes(), whole.fingerprint)
        if whole.has_lengths:
            self.lengths = whole.lengths[indices]
        if whole.has_num_items:
            self.num_items = whole.num_items[indices]

    def faults(self, train: Any = None) -> Iterator[str]:
        """Yield lines about the full data set if this is the training part.

        If this is the validation part, yield nothing. The lines about the full data set also cover
        the examples of the validation part, and none of these examples is in the training part,
        because equal examples are in the same part.

        Args:
            train: The training part, if this is the validation part; otherwise None.
        """
        if train is None:
            yield from self._whole.faults()

    def __len__(self) -> int:
        return len(self._indices)

    def __getitem__(self, index: int) -> dict[str, Any]:
        return self.__getitems__([index])[0]

    def __getitems__(self, indices: list[int]) -> list[dict[str, Any]]:
        return self._whole.fetch(self._indices[indices].tolist())


def hold_out(
    examples: ExampleSet, share: float, seed: int, fold: int = 0
) -> tuple[ExampleSet, ExampleSet]:
    """Split examples into a training part and a validation part.

    The part to which an example is assigned depends on a hash of its content and on the seed. The
    split is the same on every machine and after a resume. Equal examples are in the same part.

    Args:
        share: Expected fraction of the examples in the validation part.
        fold: Index of the validation part among `1 / share` disjoint parts.

    Raises:
        RunError: The training part or the validation part is empty.
    """
    checksums = getattr(examples.dataset, "checksums", None)
    if checksums is None:
        checksums = [hash_example(examples.dataset[index]) for index in range(len(examples))]
    place = _uniform(np.asarray(checksums) & 0xFFFFFFFF, seed)
    is_held_out = (place >= fold * share) & (place < (fold + 1) * share)
    parts = []
    for chosen in (~is_held_out, is_held_out):
        indices = np.flatnonzero(chosen)
        if len(indices) == 0:
            raise RunError(
                f"--valid_size {share} of {len(examples)} examples leaves a part empty (training "
                "or validation); expected --valid_input, or another size"
            )
        parts.append(ExampleSet(Part(examples, indices), examples.is_divisible))
    return parts[0], parts[1]


def _uniform(checksums: np.ndarray, seed: int) -> np.ndarray:
    """Map checksums to [0, 1) with the mixing function of SplitMix64 (Steele et al., 2014)."""
    with np.errstate(over="ignore"):
        mixed = checksums.astype(np.uint64) + np.uint64(seed + 1) * np.uint64(0x9E3779B97F4A7C15)
        mixed = (mixed ^ (mixed >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
        mixed = (mixed ^ (mixed >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
        return (mixed ^ (mixed >> np.uint64(31))) / np.float64(2**64)
