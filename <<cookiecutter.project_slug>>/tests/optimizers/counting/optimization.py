"""An optimizer with Python numbers in the state of each parameter, as in older optimizers."""

import torch
from torch import nn
from torch.optim import Optimizer


class Counting(Optimizer):
    def __init__(self, parameters, lr: float):
        super().__init__(parameters, {"lr": lr})

    @torch.no_grad()
    def step(self, closure=None):
        for group in self.param_groups:
            for parameter in group["params"]:
                if parameter.grad is not None:
                    self._update(parameter, group["lr"])

    def _update(self, parameter: nn.Parameter, lr: float) -> None:
        state = self.state[parameter]
        if not state:
            state.update(step=0, decay=1.0, mean=torch.zeros_like(parameter))
        state["step"] += 1
        state["decay"] *= 0.9
        state["mean"].mul_(0.9).add_(parameter.grad, alpha=0.1)
        parameter.sub_(state["mean"], alpha=lr / (1 - state["decay"]))


def build_optimizer(model: nn.Module, lr: float, weight_decay: float) -> Optimizer:
    return Counting([p for p in model.parameters() if p.requires_grad], lr)
