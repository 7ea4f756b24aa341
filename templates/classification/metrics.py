"""What validation reports beside the loss."""

from pathlib import Path

import torch
from matplotlib.figure import Figure
from torchmetrics import MetricCollection
from torchmetrics.classification import (
    MulticlassAccuracy,
    MulticlassConfusionMatrix,
    MulticlassF1Score,
)
from transformers import PreTrainedModel, PreTrainedTokenizerBase

# Arguments of Scores that train.py offers on its command line.
OPTIONS: dict[str, dict] = {}


class Scores:
    """Accuracy, and the F1 score averaged over the labels, over all processes."""

    def __init__(
        self, model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, device: torch.device
    ):
        count = model.config.num_labels
        self.names = [model.config.id2label[index] for index in range(count)]
        self.metrics = MetricCollection(
            {
                "accuracy": MulticlassAccuracy(count, average="micro"),
                "macro_f1": MulticlassF1Score(count, average="macro"),
                "confusion": MulticlassConfusionMatrix(count),
            }
        ).to(device)

    @staticmethod
    def directions() -> dict[str, bool]:
        """The names of the scores, and of each whether more is better."""
        return {"accuracy": True, "macro_f1": True}

    def reset(self) -> None:
        """Begin a validation."""
        self.metrics.reset()

    def update(self, outputs, inputs: dict[str, torch.Tensor]) -> None:
        """Take in a batch: what the model made of it, and what it was given."""
        self.metrics.update(outputs.logits, inputs["labels"])

    def compute(self, loss: float) -> dict[str, float]:
        """Give the scores, by name; `loss` is the mean over all label items."""
        scores = self.metrics.compute()
        self.confusion = scores.pop("confusion").cpu()
        return {name: value.item() for name, value in scores.items()}

    def save(self, folder: Path) -> None:
        """Draw confusion_matrix.png: rows are what the label is, columns what was predicted."""
        count, shares = len(self.names), self.confusion / self.confusion.sum(1, keepdim=True)
        size = 3 + 0.4 * min(count, 40)
        figure = Figure(figsize=(size, size), layout="constrained")
        axes = figure.subplots()
        axes.imshow(shares.nan_to_num().numpy(), cmap="Blues", vmin=0, vmax=1)
        axes.set(xlabel="predicted", ylabel="label", xticks=range(count), yticks=range(count))
        # A dollar sign would begin a formula.
        names = [name.replace("$", r"\$")[:30] for name in self.names]
        axes.set_xticklabels(names, rotation=45 if count < 20 else 90, ha="right")
        axes.set_yticklabels(names)
        for row in range(count if count <= 20 else 0):
            for column in range(count):
                color = "white" if shares[row, column] > 0.5 else "black"
                number = f"{self.confusion[row, column].item():,}"
                axes.text(column, row, number, ha="center", va="center", color=color)
        figure.savefig(folder / "confusion_matrix.png", dpi=120)
