"""The optimizers of `--optimizer`, and their parameter groups."""

from collections.abc import Callable, Collection, Iterable
from functools import partial
from typing import Any

import torch
from torch import nn
from torch.optim import SGD, AdamW, Optimizer

from errors import RunError

from .layers import hidden_matrices, layer_stacks, learning_rate_factors
from .optimizer_options import OPTIMIZERS, OptimizerOptions

Groups = list[dict[str, Any]]
LR_FACTOR = "lr_factor"  # entry of a parameter group: its peak learning rate divided by `--lr`


class Combined(Optimizer):
    """Several optimizers, each for some of the parameters, used as one.

    The parameter groups and the state are those of the parts.
    """

    def __init__(self, parts: list[Optimizer]):
        super().__init__([group for part in parts for group in part.param_groups], {})
        self.parts = parts

    @torch.no_grad()
    def step(self, closure: Callable[[], Any] | None = None) -> None:
        # Assign in each step: `Accelerator.prepare` may replace the groups and the state of this
        # object.
        start = 0
        for part in self.parts:
            end = start + len(part.param_groups)
            part.param_groups = self.param_groups[start:end]
            part.state = self.state
            part.step()
            start = end


def _adamw(groups: Groups, options: OptimizerOptions) -> Optimizer:
    return AdamW(groups, fused=True, **options.adam)


def _adamw_8bit(groups: Groups, options: OptimizerOptions) -> Optimizer:
    from bitsandbytes.optim import AdamW8bit

    return AdamW8bit(groups, **options.adam)


def _muon(groups: Groups, options: OptimizerOptions) -> Optimizer:
    if not hasattr(torch.optim, "Muon"):
        raise RunError(
            f"--optimizer muon: not in torch {torch.__version__}; expected torch 2.9 or newer"
        )
    momentum = 0.95 if options.momentum is None else options.momentum
    # Scale updates to the RMS of AdamW updates, so that both optimizers can share a learning rate.
    return torch.optim.Muon(groups, momentum=momentum, adjust_lr_fn="match_rms_adamw")


def _schedule_free(groups: Groups, options: OptimizerOptions) -> Optimizer:
    from schedulefree import AdamWScheduleFree

    return AdamWScheduleFree(groups, **options.adam)


def _sgd(groups: Groups, options: OptimizerOptions) -> Optimizer:
    momentum = 0.9 if options.momentum is None else options.momentum
    # Do not use fused SGD: if float16 overflows in the first step, fused SGD leaves the momentum
    # buffer uninitialized.
    return SGD(groups, momentum=momentum, nesterov=momentum > 0)


BUILDERS: dict[str, Callable[[Groups, OptimizerOptions], Optimizer]] = {
    "adamw": _adamw,
    "adamw_8bit": _adamw_8bit,
    "muon": _muon,
    "schedule_free": _schedule_free,
    "sgd": _sgd,
}


def build_optimizer(
    model: nn.Module,
    lr: float,
    weight_decay: float,
    options: OptimizerOptions = OptimizerOptions(),  # noqa: B008
) -> Optimizer:
    """Build an optimizer. Parameters with fewer than two dimensions have no weight decay.

    Raises:
        RunError: The model has no parameter to train, an option does not apply to the model, or the
            installed torch does not have the optimizer.
    """
    trained = [p for p in model.parameters() if p.requires_grad]
    if not trained:
        raise RunError("model/modeling.py: no parameter requires a gradient; nothing to train")
    factors = learning_rate_factors(model, options.layer_decay, options.head_lr_factor)
    group = partial(parameter_groups, factors=factors, lr=lr, weight_decay=weight_decay)
    if OPTIMIZERS[options.optimizer].for_matrices:
        optimizer = _build_combined(model, group, options)
    else:
        optimizer = BUILDERS[options.optimizer](group(trained), options)
    optimizer.defaults["lr"] = lr  # read by the polynomial schedule of transformers
    return optimizer


def _build_combined(
    model: nn.Module,
    group: Callable[[Iterable[nn.Parameter]], Groups],
    options: OptimizerOptions,
) -> Optimizer:
    """Combine the chosen optimizer, for the matrices of hidden layers, with AdamW for the rest.

    Raises:
        RunError: No matrix of a hidden layer requires a gradient, or the installed torch does not
            have the optimizer.
    """
    trained = [p for p in model.parameters() if p.requires_grad]
    matrices = hidden_matrices(model)
    if not matrices:
        raise RunError(
            f"--optimizer {options.optimizer}: {type(model).__name__} has no trained matrix "
            "outside the embeddings and the head; expected adamw"
        )
    parts = [BUILDERS[options.optimizer](group(p for p in trained if p in matrices), options)]
    if others := group(p for p in trained if p not in matrices):
        parts.append(_adamw(others, options))
    return Combined(parts)


def parameter_groups(
    parameters: Iterable[nn.Parameter],
    factors: dict[nn.Parameter, float],
    lr: float,
    weight_decay: float,
) -> Groups:
    """Group parameters by learning rate and weight decay.

    Parameters with fewer than two dimensions, such as biases and the weights of normalization
    layers, have no weight decay.
    """
    groups: dict[tuple[float, bool], dict[str, Any]] = {}
    for parameter in sorted(parameters, key=lambda p: (-factors[p], p.ndim < 2)):
        factor = factors[parameter]
        is_matrix = parameter.ndim >= 2
        settings = {
            "params": [],
            "lr": lr * factor,
            LR_FACTOR: factor,
            "weight_decay": weight_decay if is_matrix else 0.0,
        }
        groups.setdefault((factor, is_matrix), settings)["params"].append(parameter)
    return list(groups.values())


def describe_optimizer(optimizer: Optimizer, model: nn.Module) -> list[str]:
    """Return lines to print if parameters have different optimizers or learning rates."""
    lines = []
    if isinstance(optimizer, Combined):
        parts = (f"{type(part).__name__} for {_count(part)}" for part in optimizer.parts)
        lines.append(f"optimizer: {', '.join(parts)}")
    factors = [group[LR_FACTOR] for group in optimizer.param_groups]
    if set(factors) != {1.0}:
        stacks = layer_stacks(model)
        layers = ", ".join(f"{name} ({len(stack)})" for name, stack in stacks.items()) or "none"
        lines.append(
            f"learning rates: {min(factors):.3g} to {max(factors):.3g} times --lr; layers: {layers}"
        )
    return lines


def scheduled_lr(optimizer: Optimizer) -> float:
    """Return the current learning rate, without the factors of parameter groups."""
    group = optimizer.param_groups[0]
    return group["lr"] / group.get(LR_FACTOR, 1.0)


def _count(optimizer: Optimizer) -> str:
    parameters: Collection = [p for group in optimizer.param_groups for p in group["params"]]
    return f"{len(parameters)} tensors ({sum(p.numel() for p in parameters):,} parameters)"
