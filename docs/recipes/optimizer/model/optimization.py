"""Adafactor, with lower learning rates for layers that are nearer to the input."""

import math
import re
from collections import defaultdict

from torch import nn
from torch.optim import Adafactor, Optimizer
from torch.optim.lr_scheduler import LambdaLR

DECAY = 0.8  # learning rate of a layer, relative to that of the layer after it
LAYER = re.compile(r"\.(?:layer|layers|h|block)\.(\d+)\.")


def build_optimizer(model: nn.Module, lr: float, weight_decay: float) -> Optimizer:
    """Build Adafactor, given `--lr` and `--weight_decay`.

    Embeddings, and other parameters with "embed" in their names, have the smallest learning rate.
    The head, and all other parameters outside the layers, have the learning rate `lr`.
    """
    embeddings = {m.weight for m in model.modules() if isinstance(m, nn.Embedding)}
    named = [(name, p) for name, p in model.named_parameters() if p.requires_grad]
    numbers = [int(found[1]) for name, _ in named if (found := LAYER.search(name))]
    top = max(numbers, default=-1) + 1
    groups: dict[tuple[int, bool], list[nn.Parameter]] = defaultdict(list)
    for name, parameter in named:
        found = LAYER.search(name)
        is_embedding = parameter in embeddings or "embed" in name
        depth = top - int(found[1]) if found else (top + 1) * is_embedding
        groups[depth, parameter.ndim >= 2].append(parameter)
    return Adafactor(
        [
            {"params": part, "lr": lr * DECAY**depth, "weight_decay": weight_decay * is_matrix}
            for (depth, is_matrix), part in sorted(groups.items(), key=lambda item: item[0])
        ]
    )


def build_scheduler(optimizer: Optimizer, num_warmup_steps: int, total_steps: int) -> LambdaLR:
    """Build a schedule: warm-up, then the inverse square root of the step."""
    warmup = max(1, num_warmup_steps)

    def factor(step: int) -> float:
        return min((step + 1) / warmup, math.sqrt(warmup / (step + 1)))

    return LambdaLR(optimizer, factor)
