"""What validation reports beside the loss."""

from itertools import product
from pathlib import Path

import torch
from transformers import PreTrainedModel, PreTrainedTokenizerBase

# Arguments of Scores that train.py offers on its command line.
OPTIONS: dict[str, dict] = {}
# By the problem type: the name of each score, and whether more is better.
DIRECTIONS = {
    "single_label_classification": {"accuracy": True, "macro_f1": True},
    "multi_label_classification": {"exact_match": True, "micro_f1": True, "macro_f1": True},
    "regression": {"mean_absolute_error": False, "pearson": True},
}


def metrics_of(problem_type: str, count: int):
    """A `MetricCollection` of those behind them; one that is no score is shown otherwise."""
    import torchmetrics  # takes a second: not before the first step
    from torchmetrics import classification as of

    kinds = {
        "single_label_classification": lambda: {
            "accuracy": of.MulticlassAccuracy(count, average="micro"),
            "macro_f1": of.MulticlassF1Score(count, average="macro"),
            "confusion": of.MulticlassConfusionMatrix(count),
        },
        "multi_label_classification": lambda: {
            "exact_match": of.MultilabelExactMatch(count),
            "micro_f1": of.MultilabelF1Score(count, average="micro"),
            "macro_f1": of.MultilabelF1Score(count, average="macro"),
        },
        "regression": lambda: {
            "mean_absolute_error": torchmetrics.MeanAbsoluteError(),
            "pearson": torchmetrics.PearsonCorrCoef(),
        },
    }
    return torchmetrics.MetricCollection(kinds[problem_type]())


class Scores:
    """The scores of `DIRECTIONS` for the model's labels, over all processes."""

    def __init__(
        self, model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, device: torch.device
    ):
        self.config, self.device = model.config, device

    @staticmethod
    def directions(schema: dict) -> dict[str, bool]:
        """The names of the scores for data of this schema, and of each whether more is better."""
        return DIRECTIONS[schema["problem_type"]]

    def reset(self) -> None:
        """Begin a validation."""
        metrics = metrics_of(self.config.problem_type, self.config.num_labels)
        self.metrics = metrics.to(self.device)

    def update(self, outputs, inputs: dict[str, torch.Tensor]) -> None:
        """Take in a batch: what the model made of it, and what it was given."""
        logits, labels = outputs.logits.float(), inputs["labels"]
        if self.config.problem_type == "regression":
            logits = logits.squeeze(-1)
        elif self.config.problem_type == "multi_label_classification":
            logits, labels = logits.sigmoid(), labels.int()
        self.metrics.update(logits, labels)

    def compute(self, loss: float) -> dict[str, float]:
        """Give the scores, by name; `loss` is the mean over all label items."""
        scores = self.metrics.compute()
        self.confusion = scores.pop("confusion", None)
        return {name: value.item() for name, value in scores.items()}

    def save(self, folder: Path) -> None:
        """Draw confusion_matrix.png: rows are what the label is, columns what was predicted."""
        if self.confusion is None:
            return
        from matplotlib.figure import Figure  # takes a second: not at every start

        count, confusion = self.config.num_labels, self.confusion.cpu()
        shares = confusion / confusion.sum(1, keepdim=True)
        size = 3 + 0.4 * min(count, 40)
        figure = Figure(figsize=(size, size), layout="constrained")
        axes = figure.subplots()
        axes.imshow(shares.nan_to_num().numpy(), cmap="Blues", vmin=0, vmax=1)
        axes.set(xlabel="predicted", ylabel="label", xticks=range(count), yticks=range(count))
        # A dollar sign would begin a formula.
        names = [name.replace("$", r"\$")[:30] for _, name in sorted(self.config.id2label.items())]
        axes.set_xticklabels(names, rotation=45 if count < 20 else 90, ha="right")
        axes.set_yticklabels(names)
        for row, column in product(range(count), repeat=2) if count <= 20 else ():
            color = "white" if shares[row, column] > 0.5 else "black"
            number = f"{confusion[row, column].item():,}"
            axes.text(column, row, number, ha="center", va="center", color=color)
        figure.savefig(folder / "confusion_matrix.png", dpi=120)
