"""What validation reports beside the loss."""

import torch
from torchmetrics import MetricCollection
from torchmetrics.classification import MulticlassAccuracy, MulticlassF1Score

from .configuration import ModelConfig


class Scores:
    """Accuracy, and the F1 score averaged over the labels, over all processes."""

    def __init__(self, config: ModelConfig, device: torch.device):
        count = config.num_labels
        self.metrics = MetricCollection(
            {
                "accuracy": MulticlassAccuracy(count, average="micro"),
                "macro_f1": MulticlassF1Score(count, average="macro"),
            }
        ).to(device)

    def update(self, outputs, inputs: dict[str, torch.Tensor]) -> None:
        """Take in a batch: what the model made of it, and what it was given."""
        self.metrics.update(outputs.logits, inputs["labels"])

    def compute(self, loss: float) -> dict[str, float]:
        """Give the scores, by name; `loss` is the mean over all label items."""
        return {name: value.item() for name, value in self.metrics.compute().items()}
