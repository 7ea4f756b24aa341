"""An optimizer that stores its estimated step size in the parameter group, as Prodigy does."""

import torch
from torch import nn
from torch.optim import Optimizer


class Adaptive(Optimizer):
    def __init__(self, parameters, lr: float):
        super().__init__(parameters, {"lr": lr, "d": 1e-2, "k": 0})

    @torch.no_grad()
    def step(self, closure=None):
        for group in self.param_groups:
            trained = [p for p in group["params"] if p.grad is not None]
            norm = torch.stack([p.grad.norm() for p in trained]).norm().item()
            group["d"] = group["d"] * (1 + 0.1 * norm / (1 + norm))
            group["k"] += 1
            for parameter in trained:
                parameter.sub_(parameter.grad, alpha=group["lr"] * group["d"])


def build_optimizer(model: nn.Module, lr: float, weight_decay: float) -> Optimizer:
    return Adaptive([p for p in model.parameters() if p.requires_grad], lr)
