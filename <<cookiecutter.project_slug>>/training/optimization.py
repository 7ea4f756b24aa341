"""The optimizer and its schedule, which is counted in optimizer steps."""

import math

import torch
from accelerate import Accelerator
from accelerate.utils import DistributedType
from torch import nn
from torch.distributed.tensor import DTensor
from torch.optim.lr_scheduler import LambdaLR
from transformers import SchedulerType, get_scheduler

from .state import TrainingState

# Those whose learning rate is a function of the step; the other two follow a metric.
SCHEDULERS = sorted({s.value for s in SchedulerType} - {"reduce_lr_on_plateau", "greedy"})

# Where a fused AdamW is known to heed `grad_scale`.
SCALING = {"cpu", "cuda"}


def build_optimizer(model: nn.Module, lr: float, weight_decay: float) -> torch.optim.Optimizer:
    """AdamW, fused, with weight decay on matrices only.

    Biases and the weights of norms, whatever an architecture calls them, are the parameters of
    one dimension.
    """
    parameters = [p for p in model.parameters() if p.requires_grad]
    groups = [
        {"params": [p for p in parameters if p.ndim >= 2], "weight_decay": weight_decay},
        {"params": [p for p in parameters if p.ndim < 2], "weight_decay": 0.0},
    ]
    return torch.optim.AdamW([g for g in groups if g["params"]], lr=lr, fused=True)


def build_scheduler(
    optimizer: torch.optim.Optimizer, name: str, num_warmup_steps: int, state: TrainingState
) -> LambdaLR:
    """A schedule of `transformers.get_scheduler`, as it stands after the steps done so far.

    The last tenth of `warmup_stable_decay` decays; a schedule with a least rate ends at a tenth.
    """
    options: dict[str, dict] = {
        "warmup_stable_decay": {"num_decay_steps": state.total_steps // 10},
        "cosine_with_min_lr": {"min_lr_rate": 0.1},
        "cosine_warmup_with_min_lr": {"min_lr_rate": 0.1},
    }
    scheduler = get_scheduler(
        name, optimizer, num_warmup_steps, state.total_steps, options.get(name)
    )
    scheduler.last_epoch = state.scheduler_steps
    for group, base_lr, factor in zip(
        optimizer.param_groups, scheduler.base_lrs, scheduler.lr_lambdas, strict=True
    ):
        group["lr"] = base_lr * factor(state.scheduler_steps)
    return scheduler


class Guard:
    """Stands before each step: cuts gradients to a norm, and keeps the weights from what is not
    finite, and from all steps after it.

    Without reading anything back, and without writing the gradients once more: a fused optimizer
    divides them by `grad_scale` while it steps and, where `found_inf` is set, changes nothing. A
    loss scaler sets both itself, and expects gradients to overflow.

    Args:
        max_grad_norm: 0 for any.
    """

    def __init__(
        self,
        accelerator: Accelerator,
        model: nn.Module,
        optimizer: torch.optim.Optimizer,
        max_grad_norm: float,
    ):
        self._accelerator, self._parameters = accelerator, list(model.parameters())
        self._max_norm = max_grad_norm or math.inf
        self._has_scaler = accelerator.scaler is not None
        self._found = torch.zeros((), device=accelerator.device)
        self._poison = torch.zeros_like(self._found)
        while hasattr(optimizer, "optimizer"):  # DeepSpeed's skips such a step, but not those after
            optimizer = optimizer.optimizer
        self._optimizer = optimizer
        is_fused = optimizer.defaults.get("fused") and not self._has_scaler
        if is_fused:
            optimizer.found_inf = self._found
        is_bare = accelerator.distributed_type != DistributedType.DEEPSPEED  # that one cuts, too
        self._scales = is_fused and is_bare and accelerator.device.type in SCALING

    def check(self, loss: torch.Tensor) -> torch.Tensor:
        """Return the loss, or NaN if it or the gradient, now or before, was not finite."""
        norm = self._cut()
        norm = norm.full_tensor() if isinstance(norm, DTensor) else norm
        if self._scales:
            self._optimizer.grad_scale = (norm / self._max_norm).clamp(min=1)
        seen = loss if self._has_scaler else loss + norm
        self._poison += seen - seen  # 0; of infinity and NaN, NaN for good
        self._found.copy_(self._poison.isnan())
        return loss + self._poison

    def _cut(self) -> torch.Tensor | float:
        """Cut, unless the optimizer is going to; return the norm of the gradient as it was."""
        if not self._scales:
            return self._accelerator.clip_grad_norm_(self._parameters, self._max_norm)
        return nn.utils.get_total_norm([p.grad for p in self._parameters if p.grad is not None])


def take_step(
    accelerator: Accelerator, optimizer: torch.optim.Optimizer, scheduler: LambdaLR
) -> bool:
    """Step, and move the schedule, unless half precision has overflowed.

    Returns:
        Whether the step was skipped: a fused optimizer skips by itself, and the scale tells.
    """
    scaler, was_skipped = accelerator.scaler, False
    if scaler is None:
        optimizer.step()
    else:
        scale = scaler.get_scale()
        scaler.step(optimizer)
        scaler.update()
        was_skipped = scaler.get_scale() < scale
    optimizer.zero_grad()
    if not was_skipped:
        scheduler.step()
    return was_skipped
