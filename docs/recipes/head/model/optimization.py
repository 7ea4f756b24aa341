"""The optimizer: AdamW, with a higher learning rate for the head than for the body."""

from collections import defaultdict
from typing import Any

from torch import nn
from torch.optim import AdamW, Optimizer

FACTOR = 10.0


def build_optimizer(model: Any, lr: float, weight_decay: float) -> Optimizer:
    """Build AdamW with `--lr` for the body, and FACTOR * `--lr` for the head and the pooler."""
    classifier = model.base_model
    body = f"{classifier.base_model_prefix}."
    groups: dict[tuple[bool, bool], list[nn.Parameter]] = defaultdict(list)
    for name, parameter in classifier.named_parameters():
        if parameter.requires_grad:
            is_head = not name.startswith(body) or ".pooler." in name
            groups[is_head, parameter.ndim >= 2].append(parameter)
    return AdamW(
        [
            {
                "params": part,
                "lr": lr * FACTOR if is_head else lr,
                "weight_decay": weight_decay if is_matrix else 0.0,
            }
            for (is_head, is_matrix), part in groups.items()
        ],
        lr=lr,
        fused=True,
    )
