"""The loss: the cross entropy, averaged over the target tokens of the global batch."""

from torch import Tensor
from torch.nn import functional as F


def cross_entropy(
    logits: Tensor,
    labels: Tensor,
    num_items_in_batch: Tensor | int | None = None,
    label_smoothing: float = 0.0,
) -> Tensor:
    """Compute the sum of the losses of the tokens, divided by `num_items_in_batch`.

    Args:
        logits: Shape (batch, length, vocabulary).
        labels: Token ids, shape (batch, length); -100 is ignored.
        num_items_in_batch: Divisor of the sum: the number of target tokens in the global batch.
            Default: the number of target tokens in `labels`.
        label_smoothing: Fraction of the probability of each target that is spread evenly over the
            vocabulary; see `torch.nn.CrossEntropyLoss`.
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
