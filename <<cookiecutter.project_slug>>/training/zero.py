"""ZeRO-2 and ZeRO-3 of DeepSpeed: configuration of its engine, and its sharded optimizer state."""

import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from accelerate import Accelerator
from deepspeed.runtime.zero import unwrap_model_for_generation
from deepspeed.utils import (
    safe_get_full_optimizer_state,
    safe_set_full_optimizer_state,
    safe_set_local_optimizer_state,
)
from torch import Tensor, nn
from torch.nn.functional import pad
from torch.optim import Optimizer

from errors import RunError

from .optimizer_state import OptimizerState
from .strategy import Strategy

MOMENTS = ("exp_avg", "exp_avg_sq")
# Ignore deprecation warnings of torch that DeepSpeed causes in each step.
warnings.filterwarnings("ignore", "`torch.distributed", FutureWarning)


class ZeroStrategy(Strategy):
    """ZeRO-2 or ZeRO-3.

    Raises:
        RunError: float16, offloading, or an optimizer other than AdamW was requested.
    """

    can_probe_memory = False  # the engine allows no backward pass outside of a step

    def __init__(self, accelerator: Accelerator, max_grad_norm: float):
        super().__init__(accelerator)
        if accelerator.mixed_precision == "fp16":
            raise RunError("mixed_precision fp16: not supported with DeepSpeed; expected bf16")
        plugin = accelerator.state.deepspeed_plugin
        if {plugin.offload_optimizer_device, plugin.offload_param_device} - {None, "none"}:
            # DeepSpeed's CPU optimizer would not skip a step with non-finite gradients.
            raise RunError(
                "DeepSpeed: offloading is not supported; expected the offload device `none`"
            )
        plugin.deepspeed_config.update(
            train_micro_batch_size_per_gpu=1,  # required; only used to count samples
            gradient_accumulation_steps=1,  # otherwise the engine would divide the loss again
            gradient_clipping=max_grad_norm,
            # DeepSpeed's own bf16 mode has no autocast: the loss would be computed in bf16 as
            # well. Without the empty list below, the weights of layers such as nn.Linear would be
            # communicated, and therefore also saved, in bf16.
            bf16={"enabled": False},
            torch_autocast={
                "enabled": accelerator.mixed_precision == "bf16",
                "dtype": "bfloat16",
                "lower_precision_safe_modules": [],
            },
        )

    def prepare(
        self, model: nn.Module, optimizer: Optimizer, may_leave_unused: bool
    ) -> tuple[nn.Module, Optimizer]:
        """Build the engine; return the engine and Accelerate's wrapper of the optimizer.

        `step` of the wrapper does nothing: the engine calls `step` of its own optimizer inside
        `Accelerator.backward`.
        """
        if not isinstance(optimizer, torch.optim.AdamW):
            raise RunError(
                f"DeepSpeed with {type(optimizer).__name__}: not supported; expected AdamW"
            )
        model, optimizer = self.accelerator.prepare(model, optimizer)
        _make_state(optimizer)
        return model, optimizer

    def optimizer_state(self, model: nn.Module, optimizer: Any) -> OptimizerState:
        step = next(iter(optimizer.optimizer.optimizer.state.values()))["step"]
        tensors = {}
        for name, parameter in _trained(model):
            tensors[f"{name}/step"] = step.cpu().clone()
            for key in MOMENTS:
                tensors[f"{name}/{key}"] = safe_get_full_optimizer_state(parameter, key).cpu()
        return OptimizerState(tensors)

    def load_optimizer_state(self, model: nn.Module, optimizer: Any, state: OptimizerState) -> None:
        step = None
        for name, parameter in _trained(model):
            if f"{name}/step" not in state.tensors:  # the parameter never had a gradient
                continue
            step = state.tensors[f"{name}/step"]
            for key in MOMENTS:
                _set(parameter, state.tensors[f"{name}/{key}"], key)
        if step is None:
            raise KeyError("step")
        for values in optimizer.optimizer.optimizer.state.values():
            values["step"].copy_(step)

    @contextmanager
    def full_parameters(self, model: Any, is_needed: bool) -> Iterator[None]:
        if not is_needed or not model.zero_optimization_partition_weights():
            yield
            return
        with unwrap_model_for_generation(model):
            yield


def _make_state(optimizer: Any) -> None:
    """Create the state of AdamW before the first step, so that the state can be loaded or saved."""
    optimizer = optimizer.optimizer
    is_zero3 = hasattr(optimizer, "fp32_partitioned_groups_flat")
    for part in (
        optimizer.fp32_partitioned_groups_flat
        if is_zero3
        else optimizer.single_partition_of_fp32_groups
    ):
        state = optimizer.optimizer.state[part]
        state["step"] = torch.zeros((), device=part.device)
        state.update({key: torch.zeros_like(part) for key in MOMENTS})
    if not is_zero3:
        optimizer._lazy_init_hp_params_optimizer_state()


def _set(parameter: nn.Parameter, value: Tensor, key: str) -> None:
    if not hasattr(parameter, "ds_tensor"):
        return safe_set_full_optimizer_state(parameter, value, key)
    # With ZeRO-3, safe_set_full_optimizer_state fails if the number of elements is not a multiple
    # of the number of ranks.
    size = parameter.ds_tensor.numel()
    rank = torch.distributed.get_rank()
    padding = size * torch.distributed.get_world_size() - value.numel()
    part = pad(value.flatten(), (0, padding))[rank * size :][:size]
    return safe_set_local_optimizer_state(parameter, part, key)


def _trained(model: Any) -> list[tuple[str, nn.Parameter]]:
    return [(n, p) for n, p in model.module.named_parameters() if p.requires_grad]
