"""The optimizer and its schedule, which is counted in optimizer steps."""

import torch
from accelerate import Accelerator
from accelerate.optimizer import AcceleratedOptimizer
from torch import nn
from torch.distributed.tensor import DTensor
from torch.optim.lr_scheduler import LambdaLR
from transformers import SchedulerType, get_scheduler

from .state import TrainingState

# Those whose learning rate is a function of the step; the other two follow a metric.
SCHEDULERS = sorted({s.value for s in SchedulerType} - {"reduce_lr_on_plateau", "greedy"})


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
    """Keeps the weights from a step that is not finite, and from all steps after it.

    Without reading anything back: a fused optimizer looks at `found_inf` on the device and, where
    it is set, changes nothing. A loss scaler sets it by itself, and expects gradients to overflow.
    """

    def __init__(self, accelerator: Accelerator, optimizer: AcceleratedOptimizer):
        self._has_scaler = accelerator.scaler is not None
        self._found = torch.zeros((), device=accelerator.device)
        # DeepSpeed wraps it once more; it skips such a step itself, but not those after it.
        inner = getattr(optimizer.optimizer, "optimizer", optimizer.optimizer)
        if not self._has_scaler and inner.defaults.get("fused"):
            inner.found_inf = self._found

    def check(self, loss: torch.Tensor, grad_norm: torch.Tensor | float) -> torch.Tensor:
        """Return the loss, or NaN if it or the gradient, now or before, was not finite."""
        grad_norm = grad_norm.full_tensor() if isinstance(grad_norm, DTensor) else grad_norm
        is_finite = torch.isfinite(loss if self._has_scaler else loss + grad_norm)
        torch.maximum(self._found, (~is_finite).float(), out=self._found)
        return torch.where(self._found > 0, torch.nan, loss)


def take_step(
    accelerator: Accelerator, optimizer: torch.optim.Optimizer, scheduler: LambdaLR
) -> bool:
    """Step, and move the schedule, unless half precision has overflowed.

    Returns:
        Whether the step was skipped. `Accelerator.optimizer_step_was_skipped` does not know of
        it: a fused optimizer is always called, and skips by itself. The scale tells.
    """
    scaler = accelerator.scaler
    scale = scaler.get_scale() if scaler is not None else 0.0
    optimizer.step()
    optimizer.zero_grad()
    was_skipped = scaler is not None and scaler.get_scale() < scale
    if not was_skipped:
        scheduler.step()
    return was_skipped
