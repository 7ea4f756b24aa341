"""The loss: cross entropy, per label item of the whole global batch."""

from torch import Tensor
from torch.nn import functional as F


def cross_entropy(
    logits: Tensor, labels: Tensor, num_items_in_batch: Tensor | int | None = None
) -> Tensor:
    """Sum over the labels, divided by `num_items_in_batch`; their mean when that is left out.

    Args:
        logits: Shape (batch, labels).
        labels: Label ids, shape (batch,); -100 is ignored.
    """
    if num_items_in_batch is None:
        num_items_in_batch = (labels != -100).sum()
    return F.cross_entropy(logits, labels, reduction="sum") / num_items_in_batch
