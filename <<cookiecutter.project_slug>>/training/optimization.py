"""The optimizer, what stands before its step, and its schedule, which counts its steps."""

import math
from functools import partial

import torch
from accelerate import Accelerator
from torch import Tensor, nn
from torch.amp import GradScaler
from torch.distributed.tensor import DTensor
from torch.optim import Optimizer
from torch.optim.lr_scheduler import LambdaLR
from transformers import SchedulerType, get_scheduler

from .state import TrainingState

# Those whose learning rate is a function of the step; the other two follow a metric.
SCHEDULERS = sorted({s.value for s in SchedulerType} - {"reduce_lr_on_plateau", "greedy"})

NO_SCALER = GradScaler(enabled=False)  # steps, and scales nothing


def build_optimizer(model: nn.Module, lr: float, weight_decay: float) -> Optimizer:
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
    optimizer: Optimizer, name: str, num_warmup_steps: int, state: TrainingState
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
    """Stands before each step: clips gradients to a norm, and keeps the weights from what is not
    finite, and from all steps after it.

    Nothing is read back, and gradients are not written once more to clip them: a fused optimizer
    divides by `grad_scale` in its step and, where `found_inf` is set, changes nothing. A loss
    scaler sets both itself, and expects gradients to overflow.

    Args:
        max_grad_norm: 0 for any.
    """

    def __init__(
        self, accelerator: Accelerator, model: nn.Module, optimizer: Optimizer, max_grad_norm: float
    ):
        self._has_scaler = accelerator.scaler is not None
        self._found, self._poison = torch.zeros(2, device=accelerator.device)
        norm = list(model.parameters()), max_grad_norm or math.inf
        self._clip = partial(accelerator.clip_grad_norm_, *norm)
        inner = getattr(getattr(optimizer, "optimizer", optimizer), "optimizer", optimizer)
        if not self._has_scaler and inner.defaults.get("fused"):
            inner.found_inf = self._found
            # DeepSpeed, which wraps it, clips by itself. "mps" is not known to heed `grad_scale`.
            if inner is optimizer and accelerator.device.type in ("cpu", "cuda"):
                self._clip = partial(_clip_while_stepping, optimizer, *norm)

    def clip_and_check(self, loss: Tensor) -> Tensor:
        """Return the loss, or NaN if it or the gradient, now or before, was not finite."""
        norm = self._clip()
        norm = norm.full_tensor() if isinstance(norm, DTensor) else norm
        seen = loss if self._has_scaler else loss + norm
        self._poison += seen - seen  # 0; of infinity and NaN, NaN for good
        self._found.copy_(self._poison.isnan())
        return loss + self._poison


def _clip_while_stepping(
    optimizer: Optimizer, parameters: list[nn.Parameter], max_norm: float
) -> Tensor:
    norm = nn.utils.get_total_norm([p.grad for p in parameters if p.grad is not None])
    norm = norm.full_tensor() if isinstance(norm, DTensor) else norm
    optimizer.grad_scale = (norm / max_norm).clamp(min=1)
    return norm


def take_step(accelerator: Accelerator, optimizer: Optimizer, scheduler: LambdaLR) -> bool:
    """Step, and move the schedule, unless half precision has overflowed.

    Returns:
        Whether the step was skipped: a fused optimizer skips by itself, and the scale tells.
    """
    scaler = accelerator.scaler or NO_SCALER
    scale = scaler.get_scale()
    scaler.step(optimizer)
    scaler.update()
    optimizer.zero_grad()
    was_skipped = scaler.get_scale() < scale
    if not was_skipped:
        scheduler.step()
    return was_skipped
