"""The loss: the cross entropy, averaged over the labelled tokens of the global batch."""

from torch import Tensor
from torch.nn import functional as F


def cross_entropy(
    logits: Tensor,
    labels: Tensor,
    num_items_in_batch: Tensor | float | None = None,
    class_weights: Tensor | None = None,
    label_smoothing: float = 0.0,
) -> Tensor:
    """Compute the sum of the losses of the tokens, divided by `num_items_in_batch`.

    Args:
        logits: Shape (batch, length, labels).
        labels: Label ids, shape (batch, length); -100 is ignored.
        num_items_in_batch: Divisor of the sum: the number of labelled tokens in the global batch
            or, with `class_weights`, the sum of the weights of their labels. Default:
            `count_items(labels, class_weights)`.
        class_weights: Weight of each label, shape (labels,).
        label_smoothing: Fraction of the probability of each target that is spread evenly over all
            labels. Weights and smoothing have the same meaning as in `torch.nn.CrossEntropyLoss`.
    """
    if num_items_in_batch is None:
        num_items_in_batch = count_items(labels, class_weights)
    loss = F.cross_entropy(
        logits.flatten(0, 1).float(),
        labels.flatten(),
        class_weights,
        reduction="sum",
        label_smoothing=label_smoothing,
    )
    return loss / num_items_in_batch


def count_items(labels: Tensor, class_weights: Tensor | None = None) -> Tensor:
    """Return the number of labelled tokens, or the sum of the weights of their labels."""
    is_target = labels != -100
    return is_target.sum() if class_weights is None else class_weights[labels[is_target]].sum()
