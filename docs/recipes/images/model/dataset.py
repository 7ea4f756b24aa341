"""Read grayscale images, as nested lists of numbers, and their labels."""

import json

import torch

from errors import DataError


class Dataset(torch.utils.data.Dataset):
    """Images of equal size, and their labels."""

    def __init__(self, rows: list[dict], labels: list[str]):
        self.rows = rows
        self.schema = {"labels": labels}

    def __len__(self) -> int:
        return len(self.rows)

    def __getitem__(self, index: int) -> dict[str, torch.Tensor]:
        row = self.rows[index]
        label = self.schema["labels"].index(str(row["label"]))
        return {"pixels": torch.tensor(row["pixels"]) / 255, "labels": torch.tensor(label)}


def generate_dataset(path: str, labels: list[str] | None = None) -> Dataset:
    """Read JSON lines with `pixels` and `label`.

    Raises:
        DataError: A label is not in `labels`.
    """
    with open(path, encoding="utf-8") as file:
        rows = [json.loads(line) for line in file]
    found = sorted({str(row["label"]) for row in rows})
    if labels is not None and (unknown := set(found) - set(labels)):
        raise DataError(f"{path}: unknown label {unknown}; expected one of {', '.join(labels)}")
    return Dataset(rows, labels or found)
