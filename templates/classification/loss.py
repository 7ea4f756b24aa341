"""The loss: per label of the global batch."""

from torch import Tensor
from torch.nn import functional as F


def compute_loss(
    problem_type: str,
    logits: Tensor,
    labels: Tensor,
    num_items_in_batch: Tensor | int | None = None,
) -> Tensor:
    """Compute the sum over the examples, divided by `num_items_in_batch`; by default their mean.

    Args:
        problem_type: `single_label_classification` (cross entropy), `multi_label_classification`
            (binary cross entropy, the mean over the labels) or `regression` (squared error).
        logits: Shape (batch, labels); (batch, 1) for regression.
        labels: Label ids, shape (batch,), where -100 is ignored; for several labels per example
            1.0 or 0.0, shape (batch, labels); for regression values, shape (batch,).
    """
    if num_items_in_batch is None:
        num_items_in_batch = (labels != -100).sum() if labels.ndim == 1 else len(labels)
    return SUMS[problem_type](logits, labels) / num_items_in_batch


def cross_entropy(logits: Tensor, labels: Tensor) -> Tensor:
    return F.cross_entropy(logits, labels, reduction="sum")


def binary_cross_entropy(logits: Tensor, labels: Tensor) -> Tensor:
    total = F.binary_cross_entropy_with_logits(logits, labels, reduction="sum")
    return total / logits.shape[-1]


def squared_error(logits: Tensor, labels: Tensor) -> Tensor:
    return F.mse_loss(logits.squeeze(-1), labels, reduction="sum")


SUMS = {
    "single_label_classification": cross_entropy,
    "multi_label_classification": binary_cross_entropy,
    "regression": squared_error,
}
