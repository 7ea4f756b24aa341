"""The scores of a validation."""

from collections import Counter
from pathlib import Path
from typing import Any

import torch
from accelerate.utils import gather_object
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from reading.entities import entities_of, uses_prefixes

# Arguments of Scores that train.py offers on its command line.
OPTIONS: dict[str, dict] = {}
Counts = Counter[tuple[str, str]]  # number of labels or entities, by name of the count and type


class Scores:
    """Precision, recall and F1 of entities as in seqeval, and accuracy of the labels.

    A predicted entity is correct if its type and its first and last token are correct. Scores are
    computed from counts over all types and all processes.
    """

    def __init__(
        self, model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, device: torch.device
    ):
        config = model.config
        self.names = [config.id2label[index] for index in range(config.num_labels)]
        self.counts: Counts = Counter()
        self.total: Counts = Counter()

    @staticmethod
    def directions(schema: dict) -> dict[str, bool]:
        """Return for each score whether larger values are better.

        If labels have no prefixes, accuracy is the only score.
        """
        of_entities = {"f1": True, "precision": True, "recall": True}
        return {**(of_entities if uses_prefixes(schema["labels"]) else {}), "accuracy": True}

    def reset(self) -> None:
        """Start a validation."""
        self.counts = Counter()

    def update(self, outputs: Any, batch: dict[str, Any]) -> None:
        """Add a batch, and the outputs of the model for this batch."""
        found = outputs.logits.argmax(-1).cpu()
        for labels, predicted in zip(batch["labels"].cpu(), found, strict=True):
            is_labelled = labels != -100
            expected = [self.names[index] for index in labels[is_labelled].tolist()]
            given = [self.names[index] for index in predicted[is_labelled].tolist()]
            same = sum(a == b for a, b in zip(expected, given, strict=True))
            self.counts.update({("labels", ""): len(expected), ("right labels", ""): same})
            true = set(entities_of(expected))
            guessed = set(entities_of(given))
            for what, entities in (("true", true), ("found", guessed), ("both", true & guessed)):
                self.counts.update((what, entity.label) for entity in entities)

    def compute(self, loss: float) -> dict[str, float]:
        """Return the scores over all types; `loss` is not used."""
        self.total = sum(gather_object([self.counts]), Counter())
        sums: Counter[str] = Counter()
        for (what, _), count in self.total.items():
            sums[what] += count
        scores = {"accuracy": sums["right labels"] / max(1, sums["labels"])}
        if uses_prefixes(self.names):
            precision, recall, f1 = _scores(sums["both"], sums["found"], sums["true"])
            scores = {"f1": f1, "precision": precision, "recall": recall, **scores}
        return scores

    def table(self) -> dict[str, dict[str, float]]:
        """Return precision, recall, F1 and number of entities (support) of each type."""
        rows = {}
        for kind in sorted({kind for _, kind in self.total if kind}):
            both, found, true = (self.total[what, kind] for what in ("both", "found", "true"))
            precision, recall, f1 = _scores(both, found, true)
            rows[kind] = {"precision": precision, "recall": recall, "f1": f1, "support": true}
        return rows

    def save(self, folder: Path) -> None:
        """Write scores.txt, with one line for each type."""
        rows = self.table()
        width = max(map(len, ["label", *rows]))
        lines = [f"{'label':{width}}  precision  recall     f1  support"]
        for kind, row in rows.items():
            scores = f"{row['precision']:9.3f}  {row['recall']:6.3f}  {row['f1']:.3f}"
            lines.append(f"{kind:{width}}  {scores}  {row['support']:7}")
        (folder / "scores.txt").write_text("\n".join(lines) + "\n", encoding="utf-8")


def _scores(both: int, found: int, true: int) -> tuple[float, float, float]:
    """Return precision, recall and F1; 0 where seqeval would divide by 0."""
    return both / max(1, found), both / max(1, true), 2 * both / max(1, found + true)
