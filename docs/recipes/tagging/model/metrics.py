"""The scores of a validation: F0.5 of error detection, and accuracy of the tags."""

from pathlib import Path
from typing import Any

import torch
from accelerate.utils import reduce


class Scores:
    """Scores over all words, and over all ranks."""

    def __init__(self, model: Any, tokenizer: Any, device: torch.device):
        self.device = device

    @staticmethod
    def directions(schema: dict) -> dict[str, bool]:
        return {"detection_f05": True, "tag_accuracy": True}

    def reset(self) -> None:
        # true positives, predicted errors, errors, correct tags, words
        self.counts = torch.zeros(5, dtype=torch.long, device=self.device)
        self.samples: list[str] = []

    def update(self, outputs: Any, batch: dict) -> None:
        labels = batch["labels"]
        is_word = labels != -100
        found = outputs.detect_logits.argmax(-1)[is_word] == 1
        wrong = labels[is_word] > 0
        right = outputs.tag_logits.argmax(-1)[is_word] == labels[is_word]
        sums = [(found & wrong).sum(), found.sum(), wrong.sum(), right.sum(), is_word.sum()]
        self.counts += torch.stack(sums)
        if not self.samples:
            marks = (outputs.detect_logits.argmax(-1) == 1)[0][is_word[0]].tolist()
            pairs = zip(batch["words"][0], marks, strict=False)  # fewer marks if truncated
            self.samples.append(" ".join(f"*{word}*" if mark else word for word, mark in pairs))

    def compute(self, loss: float) -> dict[str, float]:
        # Each rank has sums over its own examples: reduce them before the division.
        hits, found, wrong, right, words = reduce(self.counts, "sum").tolist()
        return {
            "detection_f05": 1.25 * hits / max(1, found + 0.25 * wrong),
            "tag_accuracy": right / max(1, words),
        }

    def save(self, folder: Path) -> None:
        """Write samples.txt: a sentence with asterisks around the words predicted to be wrong."""
        (folder / "samples.txt").write_text("\n".join(self.samples) + "\n", encoding="utf-8")
