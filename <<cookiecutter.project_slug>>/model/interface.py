"""What train.py and predict.py need of the files in this folder.

Only `ModelConfig`, `Model` with a `forward` that returns a loss, and `generate_dataset` are
required. `training/contract.py` supplies a default for everything else.
"""

from collections.abc import Sequence
from pathlib import Path
from typing import Any, Protocol

import torch


class Output(Protocol):
    """What `Model.forward` returns: any `transformers.utils.ModelOutput` with a loss.

    Attributes:
        loss: A scalar. If `forward` has a parameter `num_items_in_batch`, the sum over the target
            items of the batch divided by that number; otherwise the mean over the batch.

    An optional attribute `losses` holds further scalars by name, normalised in the same way, which
    are logged beside the loss.
    """

    loss: torch.Tensor


class TaskDataset(Protocol):
    """What `generate_dataset` returns: a `torch.utils.data.Dataset` of dicts.

    Values are tensors, nested dicts of tensors, or strings that only the metrics read.

    Optional attributes and methods:
        lengths: Size of each example in tokens, shape (n,). Similar ones are batched together.
            Default: 1.
        num_items: Target items of each example, shape (n,), by which the loss is averaged.
            Default: 1.
        sort_keys: Keys to batch by, shape (n,). Default: `lengths`.
        schema: How the file was read, in JSON types: keyword arguments with which
            `generate_dataset` reads another file in the same way. Those that the constructor of
            `ModelConfig` accepts are passed to it. Default: empty.
        fingerprint: Integer that differs when the data differ. Default: a hash of up to 256
            examples.
        checksums: Checksum of the content of each example, shape (n,), by which examples are held
            out for validation. Default: computed from the examples.
        collate(examples): Batch a list of examples. Default: torch's `default_collate`.
        describe(): Lines that `--dry_run` prints about the data. Default: keys and shapes.
    """

    def __len__(self) -> int: ...

    def __getitem__(self, index: int) -> dict[str, Any]: ...


class Scorer(Protocol):
    """`Scores` of metrics.py, made as `Scores(model, tokenizer, device, **options)`.

    A static method `directions(schema, **options)` returns for each score whether larger is
    better. An optional attribute `generates` is True if a method calls `model.generate`.
    """

    def reset(self) -> None:
        """Start a validation."""

    def update(self, outputs: Any, batch: dict[str, Any]) -> None:
        """Add a batch of this rank: what the model returned, and what was collated."""

    def compute(self, loss: float) -> dict[str, float]:
        """Return the scores over all ranks, given the mean loss."""

    def save(self, folder: Path) -> None:
        """Write files that show the result of the validation; called on the main rank."""


class TaskPredictor(Protocol):
    """`Predictor` of prediction.py.

    Made as `Predictor(model, tokenizer, max_len, schema, **options)`.

    Attributes:
        columns: Columns of the input file that predict.py reads.
    """

    columns: list[str]

    def __call__(self, texts: Sequence[Any]) -> list[dict[str, Any]]:
        """Return a dict with `prediction` for each row."""
