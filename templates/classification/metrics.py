"""The scores of a validation."""

from itertools import product
from pathlib import Path
from typing import Any

import torch
from transformers import PreTrainedModel, PreTrainedTokenizerBase

# Arguments of Scores that train.py offers on its command line.
OPTIONS: dict[str, dict] = {}
# By the problem type: the names of the scores, and whether larger is better.
DIRECTIONS = {
    "single_label_classification": {"accuracy": True, "macro_f1": True},
    "multi_label_classification": {"exact_match": True, "micro_f1": True, "macro_f1": True},
    "regression": {"mean_absolute_error": False, "pearson": True},
}
DRAWN = 40  # labels in a confusion matrix: more are unreadable, and memory grows quadratically


def build_metrics(problem_type: str, count: int):
    """Return a `MetricCollection` of the scores, and of the confusion matrix if it is small."""
    import torchmetrics  # imported here because it takes a second
    from torchmetrics import classification

    classes = max(2, count)  # torchmetrics rejects one class
    if problem_type == "single_label_classification":
        metrics = {
            "accuracy": classification.MulticlassAccuracy(classes, average="micro"),
            "macro_f1": classification.MulticlassF1Score(classes, average="macro"),
        }
        if count <= DRAWN:
            metrics["confusion"] = classification.MulticlassConfusionMatrix(classes)
    elif problem_type == "multi_label_classification":
        metrics = {
            "exact_match": classification.MultilabelExactMatch(classes),
            "micro_f1": classification.MultilabelF1Score(classes, average="micro"),
            "macro_f1": classification.MultilabelF1Score(classes, average="macro"),
        }
    else:
        metrics = {
            "mean_absolute_error": torchmetrics.MeanAbsoluteError(),
            "pearson": torchmetrics.PearsonCorrCoef(),
        }
    return torchmetrics.MetricCollection(metrics)


class Scores:
    """The scores of `DIRECTIONS` for the model's labels, over all processes."""

    def __init__(
        self, model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, device: torch.device
    ):
        self.config = model.config
        self.device = device

    @staticmethod
    def directions(schema: dict) -> dict[str, bool]:
        """Return the names of the scores for data of this schema, and whether larger is better."""
        return DIRECTIONS[schema["problem_type"]]

    def reset(self) -> None:
        """Start a validation."""
        metrics = build_metrics(self.config.problem_type, self.config.num_labels)
        self.metrics = metrics.to(self.device)

    def update(self, outputs: Any, batch: dict[str, Any]) -> None:
        """Add a batch, and the model's outputs for it."""
        logits = outputs.logits.float()
        labels = batch["labels"]
        if self.config.problem_type == "regression":
            logits = logits.squeeze(-1)
        elif self.config.problem_type == "multi_label_classification":
            logits = logits.sigmoid()
            labels = labels.int()
        else:
            logits = logits.argmax(-1)
        self.metrics.update(logits, labels)

    def compute(self, loss: float) -> dict[str, float]:
        """Return the scores by name; `loss` is the mean over all labels."""
        scores = self.metrics.compute()
        self.confusion = scores.pop("confusion", None)
        return {name: value.item() for name, value in scores.items()}

    def save(self, folder: Path) -> None:
        """Draw confusion_matrix.png, with true labels as rows and predictions as columns."""
        if self.confusion is None:
            return
        from matplotlib.figure import Figure  # imported here because it takes a second

        count = self.config.num_labels
        confusion = self.confusion.cpu()[:count, :count]
        shares = confusion / confusion.sum(1, keepdim=True)
        size = 3 + 0.4 * count
        figure = Figure(figsize=(size, size), layout="constrained")
        axes = figure.subplots()
        axes.imshow(shares.nan_to_num().numpy(), cmap="Blues", vmin=0, vmax=1)
        axes.set(xlabel="predicted", ylabel="label", xticks=range(count), yticks=range(count))
        # A dollar sign would start a formula.
        names = [name.replace("$", r"\$")[:30] for _, name in sorted(self.config.id2label.items())]
        axes.set_xticklabels(names, rotation=45 if count < 20 else 90, ha="right")
        axes.set_yticklabels(names)
        for row, column in product(range(count), repeat=2) if count <= 20 else ():
            color = "white" if shares[row, column] > 0.5 else "black"
            number = f"{confusion[row, column].item():,}"
            axes.text(column, row, number, ha="center", va="center", color=color)
        figure.savefig(folder / "confusion_matrix.png", dpi=120)
