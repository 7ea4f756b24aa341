"""Optimizer step, learning rate schedule, gradient clipping, and the check for NaN and infinity."""

import math
import warnings
from collections import Counter
from collections.abc import Callable
from functools import partial

import torch
from accelerate import Accelerator
from torch import Tensor, nn
from torch.amp import GradScaler
from torch.distributed.tensor import DTensor
from torch.optim import Optimizer
from torch.optim.lr_scheduler import LambdaLR, LRScheduler, ReduceLROnPlateau
from transformers import get_scheduler

from errors import RunError

NO_SCALER = GradScaler(enabled=False)  # its step() only calls optimizer.step()


def check_optimizer(optimizer: object, model: nn.Module) -> None:
    """Check the return value of `build_optimizer` of model/optimization.py.

    Raises:
        RunError: The value is not an optimizer; a parameter that requires a gradient is not in
            exactly one parameter group; or a parameter group has a parameter that is not in the
            model.
    """
    file = "model/optimization.py"
    if not isinstance(optimizer, Optimizer):
        kind = type(optimizer).__name__
        raise RunError(f"{file}: build_optimizer returns {kind}; expected a torch.optim.Optimizer")
    held = Counter(p for group in optimizer.param_groups for p in group["params"])
    for name, parameter in model.named_parameters():
        count = held.pop(parameter, 0)
        if parameter.requires_grad and count != 1:
            raise RunError(
                f"{file}: {name} requires a gradient and is in the parameter groups of "
                f"build_optimizer {count} times; expected once, or requires_grad_(False)"
            )
    if held:
        shape = tuple(next(iter(held)).shape)
        raise RunError(
            f"{file}: build_optimizer has a parameter of shape {shape} that is not in the model; "
            "expected only parameters of the model"
        )


def check_scheduler(scheduler: object) -> None:
    """Check the return value of `build_scheduler` of model/optimization.py.

    Raises:
        RunError: The value is not a schedule that depends only on the step.
    """
    if not isinstance(scheduler, LRScheduler) or isinstance(scheduler, ReduceLROnPlateau):
        raise RunError(
            f"model/optimization.py: build_scheduler returns {type(scheduler).__name__}; expected "
            "a torch.optim.lr_scheduler.LRScheduler that depends only on the step"
        )


def build_scheduler(
    optimizer: Optimizer, name: str, num_warmup_steps: int, total_steps: int
) -> LambdaLR:
    """Build a schedule with `transformers.get_scheduler`.

    `warmup_stable_decay` decays over the last tenth of the steps. `cosine_with_min_lr` and
    `cosine_warmup_with_min_lr` end at a tenth of the peak learning rate.

    Raises:
        RunError: The schedule is undefined at a step, for example `polynomial` without decay steps,
            or transformers rejects an argument, for example a learning rate of 0 for `polynomial`.
    """
    lr = optimizer.param_groups[0]["lr"]  # the value before a schedule changes it
    options: dict[str, dict] = {
        "warmup_stable_decay": {"num_decay_steps": total_steps // 10},
        "cosine_with_min_lr": {"min_lr_rate": 0.1},
        "cosine_warmup_with_min_lr": {"min_lr_rate": 0.1},
    }
    try:
        scheduler = get_scheduler(name, optimizer, num_warmup_steps, total_steps, options.get(name))
        _check_factors(scheduler, num_warmup_steps, total_steps)
    except (ValueError, ArithmeticError) as error:
        raise RunError(
            f"--lr_scheduler_type {name} --num_warmup_steps {num_warmup_steps} --lr {lr}: no "
            f"schedule of {total_steps} steps ({error}); expected other values"
        ) from None
    return scheduler


def _check_factors(scheduler: LambdaLR, num_warmup_steps: int, total_steps: int) -> None:
    """Check that a schedule is finite at its start, middle and end, and at the end of the warm-up.

    Raises:
        ValueError, ArithmeticError: The schedule is not finite at one of these steps.
    """
    turns = [0, total_steps // 2, total_steps - 1, total_steps]
    turns += [num_warmup_steps + offset for offset in (-1, 0, 1)]
    for step in sorted({step for step in turns if 0 <= step <= total_steps}):
        if not all(math.isfinite(factor(step)) for factor in scheduler.lr_lambdas):
            raise ValueError(f"not finite at step {step}")


def fast_forward(scheduler: LRScheduler, optimizer: Optimizer, steps: int) -> None:
    """Move a schedule to its state after a number of steps."""
    if not isinstance(scheduler, LambdaLR):
        with warnings.catch_warnings():  # torch warns that the optimizer has not stepped yet
            warnings.simplefilter("ignore", UserWarning)
            for _ in range(steps):
                scheduler.step()
        return
    scheduler.last_epoch = steps
    for group, base_lr, factor in zip(
        optimizer.param_groups, scheduler.base_lrs, scheduler.lr_lambdas, strict=True
    ):
        group["lr"] = base_lr * factor(steps)


def sum_over_ranks(loss: Tensor, num_ranks: int) -> Tensor:
    """Scale a loss so that the mean gradient over the ranks is the gradient of the summed losses.

    DistributedDataParallel, FSDP and ZeRO average gradients over the ranks, so the loss is
    multiplied by the number of ranks. `0 * loss` is added to this factor: 0 for a finite loss, and
    NaN otherwise. A factor of NaN makes the gradients NaN, after the reduction also on all other
    ranks, so that every rank finds NaN as the gradient norm.
    """
    return loss * (num_ranks + 0 * loss.detach())


class GradientGuard:
    """Clips gradients, and skips all optimizer steps after a loss or gradient that is not finite.

    A fused optimizer skips its step if its attribute `found_inf` is 1, so no value has to be read
    from the device. A fused optimizer also divides the gradients by its attribute `grad_scale`.
    This clips the gradients without another pass over them, which would take 1.5 ms of a step of
    61 ms on two CPU cores. If the optimizer is not fused, `optimizer_step` reads `found_inf` from
    the device.

    With a gradient scaler (float16), this class sets neither attribute: the scaler skips each step
    whose gradients are not finite, but no later steps, and `found_nonfinite` is only about losses.

    Args:
        max_grad_norm: Maximum norm of the gradient; 0 for no limit.
    """

    def __init__(
        self, accelerator: Accelerator, model: nn.Module, optimizer: Optimizer, max_grad_norm: float
    ):
        self._has_scaler = accelerator.scaler is not None
        self._found_inf = torch.zeros((), device=accelerator.device)
        self._zero_or_nan = torch.zeros((), device=accelerator.device)
        limit = max_grad_norm or math.inf
        parameters = list(model.parameters())
        self._clip = partial(accelerator.clip_grad_norm_, parameters, limit)
        inner = innermost(optimizer)
        self.must_be_read = not self._has_scaler and not inner.defaults.get("fused")
        if not self._has_scaler and not self.must_be_read:
            inner.found_inf = self._found_inf  # type: ignore[attr-defined]
            # DeepSpeed wraps the optimizer and clips by itself; "mps" may ignore `grad_scale`.
            if inner is optimizer and accelerator.device.type in ("cpu", "cuda"):
                self._clip = partial(_clip_by_scale, optimizer, parameters, limit)

    @property
    def found_nonfinite(self) -> bool:
        """Whether a loss or gradient (with a gradient scaler: a loss) was not finite.

        Reading this waits for the device.
        """
        return bool(self._found_inf)

    def clip_gradients(self, loss: Tensor) -> tuple[Tensor, Tensor]:
        """Clip the gradients to the maximum norm.

        Returns:
            The loss, or NaN if this or an earlier loss or gradient was not finite (with a gradient
            scaler: if this or an earlier loss was not finite); and the gradient norm over all
            ranks, before clipping.
        """
        norm = self._clip()
        norm = norm.full_tensor() if isinstance(norm, DTensor) else norm
        norm = torch.as_tensor(norm, dtype=torch.float32, device=self._zero_or_nan.device)
        seen = loss if self._has_scaler else loss + norm
        self._zero_or_nan += seen - seen  # add 0 if finite, else NaN; after that it remains NaN
        self._found_inf.copy_(self._zero_or_nan.isnan())
        return loss + self._zero_or_nan, norm


def optimizer_step(
    accelerator: Accelerator,
    optimizer: Optimizer,
    scheduler: LRScheduler,
    guard: GradientGuard,
    update_average: Callable[[], None],
) -> bool:
    """Step optimizer and schedule, and update the average of the weights.

    Returns:
        Whether the step was skipped because float16 overflowed. The gradient scaler has then
        lowered its scale.
    """
    scaler = accelerator.scaler or NO_SCALER
    scale = scaler.get_scale()
    if not (guard.must_be_read and guard.found_nonfinite):
        scaler.step(optimizer)
        scaler.update()
    was_skipped = scaler.get_scale() < scale
    if not was_skipped:
        scheduler.step()
        update_average()
    optimizer.zero_grad()
    return was_skipped


def innermost(optimizer: Optimizer) -> Optimizer:
    """Unwrap the optimizers of Accelerate and DeepSpeed."""
    while isinstance(getattr(optimizer, "optimizer", None), Optimizer):
        optimizer = optimizer.optimizer  # type: ignore[attr-defined]
    return optimizer


def _clip_by_scale(optimizer: Optimizer, parameters: list[nn.Parameter], max_norm: float) -> Tensor:
    """Clip the gradients in the fused optimizer step, which divides them by `grad_scale`.

    Returns:
        The gradient norm before clipping.
    """
    norm = nn.utils.get_total_norm([p.grad for p in parameters if p.grad is not None])
    norm = norm.full_tensor() if isinstance(norm, DTensor) else norm
    optimizer.grad_scale = (norm / max_norm).clamp(min=1)  # type: ignore[attr-defined]
    return norm
