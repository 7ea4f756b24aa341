"""The loss: the cross entropy, averaged over the target tokens of the global batch."""

import math
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

# Approximate maximum number of logits computed at a time; in float32, they need 128 MiB.
LOGITS_AT_ONCE = 2**25


def num_targets(labels: Tensor) -> Tensor:
    """Count the target tokens: the labels other than -100, except those in the first column."""
    return (labels[:, 1:] != -100).sum()


def cross_entropy(
    logits: Tensor,
    labels: Tensor,
    num_items_in_batch: Tensor | int | None = None,
    label_smoothing: float = 0.0,
) -> Tensor:
    """Compute the sum of the losses of the tokens, divided by `num_items_in_batch`.

    Args:
        logits: Shape (batch, length, vocabulary).
        labels: Token ids, shape (batch, length); -100 is ignored. The logits at position i predict
            the label at position i + 1.
        num_items_in_batch: Divisor of the sum: the number of target tokens in the global batch.
            Default: the number of target tokens in `labels`.
        label_smoothing: Fraction of the probability of each target that is spread evenly over the
            vocabulary; see `torch.nn.CrossEntropyLoss`.
    """
    if num_items_in_batch is None:
        num_items_in_batch = num_targets(labels)
    loss = F.cross_entropy(
        logits[:, :-1].flatten(0, 1).float(),
        labels[:, 1:].flatten(),
        reduction="sum",
        label_smoothing=label_smoothing,
    )
    return loss / num_items_in_batch


class LinearHead(nn.Linear):
    """A linear head that can compute the loss without keeping the logits of all tokens in memory.

    The loss is computed in `forward`, because FSDP and ZeRO gather the weight only there.
    """

    def forward(
        self,
        hidden: Tensor,
        labels: Tensor | None = None,
        num_items_in_batch: Tensor | int | None = None,
        label_smoothing: float = 0.0,
    ) -> Tensor:
        """Return the logits or, if labels are given, the `cross_entropy` of the logits.

        Args:
            hidden: Shape (batch, length, hidden size).
        """
        if labels is None:
            return super().forward(hidden)
        if num_items_in_batch is None:
            num_items_in_batch = num_targets(labels)
        hidden = hidden[:, :-1].flatten(0, 1)
        weight = self.weight
        bias = self.bias
        if not torch.is_grad_enabled():  # `ctx.needs_input_grad` ignores `torch.no_grad`
            weight = weight.detach()
            bias = None if bias is None else bias.detach()
        targets = labels[:, 1:].flatten()
        loss = _LinearLoss.apply(hidden, weight, bias, targets, label_smoothing)
        return loss / num_items_in_batch


class _LinearLoss(torch.autograd.Function):
    """Compute the sum of the losses and its gradient from the logits of some tokens at a time.

    The log probabilities are overwritten with the gradient of the logits. This is the fused linear
    cross entropy of Hsu et al., "Liger Kernel" (2024). Unlike gradient checkpointing of the head,
    this method computes the logits only once.
    """

    @staticmethod
    def forward(
        ctx: Any,
        hidden: Tensor,
        weight: Tensor,
        bias: Tensor | None,
        targets: Tensor,
        label_smoothing: float,
    ) -> Tensor:
        total = torch.zeros((), device=hidden.device)
        grad_hidden = torch.zeros_like(hidden)
        # Compute no gradient for a frozen head (LoRA): this gradient is as large as the weight.
        grad_weight = torch.zeros_like(weight) if ctx.needs_input_grad[1] else None
        has_grad_bias = bias is not None and ctx.needs_input_grad[2]
        grad_bias = torch.zeros_like(bias) if has_grad_bias else None
        parts = max(1, math.ceil(len(hidden) * len(weight) / LOGITS_AT_ONCE))
        rows = max(1, math.ceil(len(hidden) / parts))  # rows in each part but the last
        for x, target, grad_x in zip(
            hidden.split(rows), targets.split(rows), grad_hidden.split(rows), strict=True
        ):
            ignored = (target == -100).unsqueeze(1)
            index = target.unsqueeze(1).masked_fill(ignored, 0)
            log_probs = F.linear(x, weight, bias).float().log_softmax(-1)
            found = log_probs.gather(1, index)
            if label_smoothing:
                mean = log_probs.mean(1, keepdim=True)
                found = (1 - label_smoothing) * found + label_smoothing * mean
            total -= found.masked_fill(ignored, 0).sum()
            if not any(ctx.needs_input_grad):
                continue
            grad = log_probs.exp_()  # in place: these are the large tensors
            if label_smoothing:
                grad -= label_smoothing / len(weight)
            grad.scatter_add_(
                1, index, torch.full_like(index, label_smoothing - 1, dtype=grad.dtype)
            )
            grad = grad.masked_fill_(ignored, 0).to(x.dtype)
            grad_x.copy_(grad @ weight)
            if grad_weight is not None:
                grad_weight += grad.T @ x
            if grad_bias is not None:
                grad_bias += grad.sum(0)
        ctx.save_for_backward(grad_hidden, grad_weight, grad_bias)
        return total

    @staticmethod
    def backward(ctx: Any, grad_total: Tensor) -> tuple[Tensor | None, ...]:
        grads = (None if grad is None else grad * grad_total for grad in ctx.saved_tensors)
        return *grads, None, None
