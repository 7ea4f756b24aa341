"""Compute bits per byte, and write a generated text."""

import math
from pathlib import Path
from typing import Any

import torch

from .dataset import END


class Scores:
    """Bits per byte, computed from the loss, which is already reduced over the ranks."""

    def __init__(self, model: Any, tokenizer: None, device: torch.device):
        self.model = model

    @staticmethod
    def directions(schema: dict) -> dict[str, bool]:
        return {"bits_per_byte": False}

    def reset(self) -> None:
        """Do nothing: there are no sums to reset."""

    def update(self, outputs: Any, batch: dict) -> None:
        """Do nothing: `compute` needs only the loss."""

    def compute(self, loss: float) -> dict[str, float]:
        return {"bits_per_byte": loss / math.log(2)}

    @torch.no_grad()
    def save(self, folder: Path) -> None:
        """Generate 60 bytes greedily; write them to sample.txt."""
        values = [END]
        for _ in range(60):
            ids = torch.tensor([values], device=self.model.device)
            values.append(int(self.model(ids).logits[0, -1, :END].argmax()))
        (folder / "sample.txt").write_bytes(bytes(values[1:]))
