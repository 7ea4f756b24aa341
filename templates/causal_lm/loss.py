"""The loss: cross entropy, per token to predict in the whole global batch."""

import torch
from torch import Tensor, nn
from torch.nn import functional as F

LOGITS_AT_ONCE = 2**25  # 128 MiB in float32


def cross_entropy(
    logits: Tensor, labels: Tensor, num_items_in_batch: Tensor | int | None = None
) -> Tensor:
    """Sum over the tokens, divided by `num_items_in_batch`; their mean when that is left out.

    Args:
        logits: Shape (batch, length, vocabulary).
        labels: Token ids, shape (batch, length), -100 where nothing is to be predicted; each is
            predicted by the logits one place before.
    """
    targets = labels[:, 1:].flatten()
    if num_items_in_batch is None:
        num_items_in_batch = (targets != -100).sum()
    loss = F.cross_entropy(logits[:, :-1].flatten(0, 1), targets, reduction="sum")
    return loss / num_items_in_batch


class LinearHead(nn.Linear):
    """A head that also gives the loss, and never holds the logits of all tokens for it.

    It is called, not read: sharded weights are whole only while their module is called.
    """

    def forward(
        self,
        hidden: Tensor,
        labels: Tensor | None = None,
        num_items_in_batch: Tensor | int | None = None,
    ) -> Tensor:
        """Give the logits or, with labels, `cross_entropy` of them.

        Args:
            hidden: Shape (batch, length, hidden size).
        """
        if labels is None:
            return super().forward(hidden)
        targets = labels[:, 1:].flatten()
        if num_items_in_batch is None:
            num_items_in_batch = (targets != -100).sum()
        hidden = hidden[:, :-1].flatten(0, 1)
        loss = _LinearLoss.apply(hidden, self.weight, self.bias, targets, torch.is_grad_enabled())
        return loss / num_items_in_batch


class _LinearLoss(torch.autograd.Function):
    """Makes the logits of some rows, turns them into their gradient, and drops them.

    The method of the fused linear cross entropy in Hsu et al., "Liger Kernel" (2024). It computes
    no more than is computed without it, unlike a checkpoint around the head.
    """

    @staticmethod
    def forward(ctx, hidden, weight, bias, targets, needs_grad):
        total = torch.zeros((), device=hidden.device)
        grad_hidden, grad_weight = torch.zeros_like(hidden), torch.zeros_like(weight)
        grad_bias = None if bias is None else torch.zeros_like(bias)
        parts = max(1, -(-len(hidden) * len(weight) // LOGITS_AT_ONCE))
        rows = max(1, -(-len(hidden) // parts))  # all of one size
        for x, target, grad_x in zip(
            hidden.split(rows), targets.split(rows), grad_hidden.split(rows), strict=True
        ):
            ignored = (target == -100).unsqueeze(1)
            index = target.unsqueeze(1).masked_fill(ignored, 0)
            log_probs = F.linear(x, weight, bias).float().log_softmax(-1)
            total -= log_probs.gather(1, index).masked_fill(ignored, 0).sum()
            if not needs_grad:
                continue
            grad = log_probs.exp_()  # in place: these are the large tensors
            grad.scatter_add_(1, index, torch.full_like(index, -1, dtype=grad.dtype))
            grad = grad.masked_fill_(ignored, 0).to(x.dtype)
            grad_x.copy_(grad @ weight)
            if ctx.needs_input_grad[1]:
                grad_weight += grad.T @ x
            if grad_bias is not None:
                grad_bias += grad.sum(0)
        ctx.save_for_backward(grad_hidden, grad_weight, grad_bias)
        return total

    @staticmethod
    def backward(ctx, grad_total):
        return *(g * grad_total if g is not None else None for g in ctx.saved_tensors), None, None
