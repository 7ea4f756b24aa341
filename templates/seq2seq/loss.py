"""The loss: the cross entropy, averaged over the target tokens of the global batch."""

from torch import Tensor
from torch.nn import functional as F


def cross_entropy(
    logits: Tensor,
    labels: Tensor,
    num_items_in_batch: Tensor | int | None = None,
    label_smoothing: float = 0.0,
) -> Tensor:
    """Compute the summed loss of the tokens, divided by `num_items_in_batch`. Default: the mean.

    Args:
        logits: Shape (batch, length, vocabulary).
        labels: Token ids, shape (batch, length); -100 is ignored.
        label_smoothing: Fraction of each target that is spread evenly over the vocabulary; see
            `torch.nn.CrossEntropyLoss`.
    """
    if num_items_in_batch is None:
        num_items_in_batch = (labels != -100).sum()
    loss = F.cross_entropy(
        logits.flatten(0, 1).float(),
        labels.flatten(),
        reduction="sum",
        label_smoothing=label_smoothing,
    )
    return loss / num_items_in_batch
