"""Schedule-free SGD: an optimizer with `train()` and `eval()`.

In training, each parameter is interpolated between the average and the weights `z` of plain SGD.
Switching to evaluation and back changes the parameters by rounding errors, as in the package
schedulefree.
"""

import torch
from torch import nn
from torch.optim import Optimizer

BETA = 0.9


class Averaging(Optimizer):
    def __init__(self, parameters, lr: float):
        super().__init__(parameters, {"lr": lr, "k": 0, "is_training": False})

    def train(self) -> None:
        self._switch(True, 1 - BETA)

    def eval(self) -> None:
        self._switch(False, 1 - 1 / BETA)

    @torch.no_grad()
    def _switch(self, is_training: bool, weight: float) -> None:
        for group in self.param_groups:
            for parameter in group["params"] if group["is_training"] != is_training else []:
                if "z" in self.state[parameter]:
                    parameter.lerp_(self.state[parameter]["z"], weight)
            group["is_training"] = is_training

    @torch.no_grad()
    def step(self, closure=None):
        for group in self.param_groups:
            assert group["is_training"]
            group["k"] += 1
            for parameter in (p for p in group["params"] if p.grad is not None):
                state = self.state[parameter]
                z = state.setdefault("z", parameter.clone())
                share = 1 / group["k"]
                parameter.lerp_(z, share)
                parameter.add_(parameter.grad, alpha=group["lr"] * (BETA * (1 - share) - 1))
                z.sub_(parameter.grad, alpha=group["lr"])


def build_optimizer(model: nn.Module, lr: float, weight_decay: float) -> Optimizer:
    return Averaging([p for p in model.parameters() if p.requires_grad], lr)
