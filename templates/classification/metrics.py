"""The scores of a validation."""

from itertools import product
from pathlib import Path
from typing import Any

import numpy as np
import torch
from accelerate.utils import gather_object
from torch import Tensor
from transformers import PreTrainedModel, PreTrainedTokenizerBase

# Arguments of Scores that train.py offers on its command line.
OPTIONS: dict[str, dict] = {}
# The scores for each problem type, and whether larger values are better.
DIRECTIONS = {
    "single_label_classification": {"accuracy": True, "macro_f1": True, "ece": False},
    "multi_label_classification": {
        "exact_match": True,
        "micro_f1": True,
        "macro_f1": True,
        "tuned_macro_f1": True,
    },
    "regression": {"mean_absolute_error": False, "pearson": True},
}
# Maximum number of labels in a confusion matrix. With more labels, the matrix would be unreadable,
# and its memory grows quadratically.
DRAWN = 40
BINS = 15  # number of bins for the calibration error
THRESHOLDS = torch.arange(1, 100) / 100  # candidate thresholds, for several labels per example


def build_metrics(problem_type: str, count: int):
    """Return a `MetricCollection` of the scores in `DIRECTIONS` except `ece` and `tuned_macro_f1`.

    For a single label per example, the collection also has `counts` (see `MulticlassStatScores`)
    and, for at most `DRAWN` labels, the `confusion` matrix.
    """
    import torchmetrics  # imported here because it takes a second
    from torchmetrics import classification

    classes = max(2, count)  # torchmetrics rejects one class
    if problem_type == "single_label_classification":
        metrics = {
            "accuracy": classification.MulticlassAccuracy(classes, average="micro"),
            "macro_f1": classification.MulticlassF1Score(classes, average="macro"),
            "counts": classification.MulticlassStatScores(classes, average=None),
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


class Calibration:
    """Compute the expected calibration error (ECE).

    The examples are divided into `BINS` bins of equal width by the probability of the predicted
    label. ECE is the absolute difference between accuracy and mean probability in a bin, averaged
    over the examples: Guo et al., "On Calibration of Modern Neural Networks" (2017).
    """

    def __init__(self) -> None:
        self.confidences: list[Tensor] = []
        self.is_correct: list[Tensor] = []

    def update(self, probabilities: Tensor, labels: Tensor) -> None:
        """Add a batch. Shapes: `probabilities` (batch, labels), `labels` (batch,)."""
        confidences, predicted = probabilities.max(-1)
        self.confidences.append(confidences)
        self.is_correct.append(predicted == labels)

    def compute(self) -> float:
        """Return the ECE over all ranks."""
        sums = np.zeros((2, BINS))  # for each bin: sum of (is_correct - confidence), and examples
        if self.confidences:  # a rank may have no example
            confidences = torch.cat(self.confidences).cpu().double().numpy()
            gaps = torch.cat(self.is_correct).cpu().numpy() - confidences
            bins = np.clip(np.ceil(confidences * BINS).astype(int) - 1, 0, BINS - 1)
            sums = np.stack([np.bincount(bins, w, BINS) for w in (gaps, np.ones_like(gaps))])
        gaps, counts = np.sum(gather_object([sums]), axis=0)
        return float(np.abs(gaps).sum() / counts.sum())


class ThresholdCounts:
    """Count the predictions of each label at each of `THRESHOLDS`."""

    def __init__(self, num_labels: int, device: torch.device):
        self.thresholds = THRESHOLDS.to(device).view(-1, 1, 1)
        shape = (3, len(THRESHOLDS), num_labels)  # correct predictions, predictions, examples
        self.counts = torch.zeros(shape, dtype=torch.long, device=device)

    def update(self, probabilities: Tensor, labels: Tensor) -> None:
        """Add a batch. Both tensors have the shape (batch, labels)."""
        predicted = probabilities > self.thresholds
        self.counts[0] += (predicted & labels.bool()).sum(1)
        self.counts[1] += predicted.sum(1)
        self.counts[2] += labels.sum(0)

    def choose(self) -> tuple[np.ndarray, np.ndarray]:
        """Choose the threshold with the highest F1 for each label, over all ranks.

        Of several thresholds with the same F1, choose the median.

        Returns:
            The thresholds, shape (labels,); and the counts of each label at its threshold, shape
            (3, labels): correct predictions, predictions, examples.
        """
        counts = np.sum(gather_object([self.counts.cpu().numpy()]), axis=0)
        f1 = precision_recall_f1(*counts)[2]
        best = [np.flatnonzero(column == column.max()) for column in f1.T]
        chosen = np.array([indices[len(indices) // 2] for indices in best])
        return THRESHOLDS.numpy()[chosen], counts[:, chosen, np.arange(len(chosen))]


def precision_recall_f1(
    correct: np.ndarray, predicted: np.ndarray, examples: np.ndarray
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Return precision, recall and F1 from counts of the same shape; 0 where undefined."""
    precision = correct / np.maximum(predicted, 1)
    recall = correct / np.maximum(examples, 1)
    f1 = 2 * correct / np.maximum(predicted + examples, 1)
    return precision, recall, f1


class Scores:
    """The scores that `DIRECTIONS` lists for the model's problem type, over all processes.

    With several labels per example, a label is predicted if its probability is above 0.5. For
    `tuned_macro_f1` and the table, the threshold of each label is chosen on the validation data
    themselves.
    """

    def __init__(
        self, model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, device: torch.device
    ):
        self.config = model.config
        self.device = device

    @staticmethod
    def directions(schema: dict) -> dict[str, bool]:
        """Return for each score of the schema's problem type whether larger values are better."""
        return DIRECTIONS[schema["problem_type"]]

    def reset(self) -> None:
        """Start a validation."""
        metrics = build_metrics(self.config.problem_type, self.config.num_labels)
        self.metrics = metrics.to(self.device)
        self.calibration = Calibration()
        several = self.config.problem_type == "multi_label_classification"
        self.thresholds = ThresholdCounts(self.config.num_labels if several else 0, self.device)
        self.chosen: dict[str, float] = {}
        self.rows: dict[str, dict[str, float]] = {}

    def update(self, outputs: Any, batch: dict[str, Any]) -> None:
        """Add a batch, and the outputs of the model for this batch."""
        logits = outputs.logits.float()
        labels = batch["labels"]
        if self.config.problem_type == "regression":
            logits = logits.squeeze(-1)
        elif self.config.problem_type == "multi_label_classification":
            logits = logits.sigmoid()
            labels = labels.int()
            self.thresholds.update(logits, labels)
        else:
            self.calibration.update(logits.softmax(-1), labels)
            logits = logits.argmax(-1)
        self.metrics.update(logits, labels)

    def compute(self, loss: float) -> dict[str, float]:
        """Return the scores by name; `loss` is not used."""
        scores = self.metrics.compute()
        self.confusion = scores.pop("confusion", None)
        counts = scores.pop("counts", None)
        found = {name: value.item() for name, value in scores.items()}
        if self.config.problem_type == "multi_label_classification":
            thresholds, chosen_counts = self.thresholds.choose()
            self._fill_table(chosen_counts, threshold=thresholds)
            self.chosen = {name: row["threshold"] for name, row in self.rows.items()}
            found["tuned_macro_f1"] = precision_recall_f1(*chosen_counts)[2].mean().item()
        elif self.config.problem_type == "single_label_classification":
            correct, wrong, _, _, examples = counts.cpu().numpy().T
            self._fill_table(np.stack([correct, correct + wrong, examples]))
            found["ece"] = self.calibration.compute()
        return found

    def _fill_table(self, counts: np.ndarray, **more: np.ndarray) -> None:
        """Fill `rows` from the counts, shape (3, labels), and further columns, shape (labels,)."""
        scores = zip(("precision", "recall", "f1"), precision_recall_f1(*counts), strict=True)
        columns = {**dict(scores), "support": counts[2], **more}
        self.rows = {
            self.config.id2label[index]: {
                name: round(values[index].item(), 6) for name, values in columns.items()
            }
            for index in range(self.config.num_labels)
        }

    def table(self) -> dict[str, dict[str, float]]:
        """Return precision, recall, F1 and number of examples (support) of each label.

        With several labels per example, also return the threshold of each label. In regression,
        return an empty dict.
        """
        return self.rows

    def predict_options(self) -> dict[str, Any]:
        """Return the thresholds, if any were chosen, as an argument of `Predictor`."""
        return {"threshold": self.chosen} if self.chosen else {}

    def save(self, folder: Path) -> None:
        """Draw the confusion matrix, if there is one: labels as rows, predictions as columns."""
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
