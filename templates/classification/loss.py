"""The loss for each type of labels, averaged over the examples of the global batch."""

from torch import Tensor
from torch.nn import functional as F


def compute_loss(
    problem_type: str,
    logits: Tensor,
    labels: Tensor,
    num_items_in_batch: Tensor | float | None = None,
    class_weights: Tensor | None = None,
    label_smoothing: float = 0.0,
) -> Tensor:
    """Compute the sum of the losses of the examples, divided by `num_items_in_batch`.

    Args:
        problem_type: `single_label_classification` (cross entropy), `multi_label_classification`
            (binary cross entropy, the mean over the labels) or `regression` (squared error).
        logits: Shape (batch, labels); (batch, 1) for regression.
        labels: Label ids, shape (batch,), where -100 is ignored. For several labels per example:
            1.0 or 0.0 for each label, shape (batch, labels). For regression: values, shape
            (batch,).
        num_items_in_batch: Divisor of the sum: the number of labelled examples in the global batch
            or, with `class_weights`, the sum of the weights of their labels. Default:
            `count_items(labels, class_weights)`.
        class_weights: Weight of each label, shape (labels,), for cross entropy only.
        label_smoothing: Fraction of the probability of each target that is spread evenly over all
            labels, for cross entropy only. Weights and smoothing have the same meaning as in
            `torch.nn.CrossEntropyLoss`.
    """
    if num_items_in_batch is None:
        num_items_in_batch = count_items(labels, class_weights)
    logits = logits.float()
    if problem_type == "single_label_classification":
        total = F.cross_entropy(
            logits, labels, class_weights, reduction="sum", label_smoothing=label_smoothing
        )
    elif problem_type == "multi_label_classification":
        total = F.binary_cross_entropy_with_logits(logits, labels, reduction="sum")
        total = total / logits.shape[-1]
    else:
        total = F.mse_loss(logits.squeeze(-1), labels, reduction="sum")
    return total / num_items_in_batch


def count_items(labels: Tensor, class_weights: Tensor | None = None) -> Tensor | int:
    """Return the number of labelled examples, or the sum of the weights of their labels."""
    if labels.ndim > 1 or labels.is_floating_point():
        return len(labels)
    is_target = labels != -100
    return is_target.sum() if class_weights is None else class_weights[labels[is_target]].sum()
