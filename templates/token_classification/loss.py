"""The loss: cross entropy, per labelled token of the global batch."""

from torch import Tensor
from torch.nn import functional as F


def cross_entropy(
    logits: Tensor, labels: Tensor, num_items_in_batch: Tensor | int | None = None
) -> Tensor:
    """Compute the sum over the tokens, divided by `num_items_in_batch`; by default their mean.

    Args:
        logits: Shape (batch, length, labels).
        labels: Label ids, shape (batch, length); -100 is ignored.
    """
    if num_items_in_batch is None:
        num_items_in_batch = (labels != -100).sum()
    loss = F.cross_entropy(logits.flatten(0, 1).float(), labels.flatten(), reduction="sum")
    return loss / num_items_in_batch
