"""ZeRO-2 and ZeRO-3 of DeepSpeed: what its engine has to be told, and the state it has in parts."""

import warnings

import torch
from accelerate import Accelerator
from deepspeed.runtime.zero import unwrap_model_for_generation as whole
from deepspeed.utils import (
    safe_get_full_optimizer_state,
    safe_set_full_optimizer_state,
    safe_set_local_optimizer_state,
)
from torch import Tensor, nn
from torch.nn.functional import pad

from errors import RunError

__all__ = ["configure", "load_optimizer", "make_state", "optimizer_tensors", "whole"]

MOMENTS = ("exp_avg", "exp_avg_sq")
# In each step: names that DeepSpeed uses are to be given up by torch.
warnings.filterwarnings("ignore", "`torch.distributed", FutureWarning)


def configure(accelerator: Accelerator, max_grad_norm: float) -> None:
    """Set what the engine has to know before it is built.

    Raises:
        RunError: half precision or offloading was asked for.
    """
    if accelerator.mixed_precision == "fp16":
        raise RunError("mixed_precision fp16: with DeepSpeed, train in bf16")
    plugin = accelerator.state.deepspeed_plugin
    if {plugin.offload_optimizer_device, plugin.offload_param_device} - {None, "none"}:
        # Its optimizer on the CPU would not skip a step that is not finite.
        raise RunError("DeepSpeed: offloading is not supported; expected offload devices of none")
    plugin.deepspeed_config.update(
        train_micro_batch_size_per_gpu=1,  # has to be there; it counts samples, nothing else
        gradient_accumulation_steps=1,  # what the loss would be divided by: it has been already
        gradient_clipping=max_grad_norm,
        # DeepSpeed's own bf16 has no autocast: even the loss would be computed in it. And weights
        # that travel in bf16 would be saved in it, too.
        bf16={"enabled": False},
        torch_autocast={
            "enabled": accelerator.mixed_precision == "bf16",
            "dtype": "bfloat16",
            "lower_precision_safe_modules": [],
        },
    )


def make_state(optimizer) -> None:
    """Make the state of AdamW before its first step: a run may load or save it before that."""
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


def optimizer_tensors(model: nn.Module, optimizer) -> dict[str, Tensor]:
    """Gather them; all processes have to call this."""
    step = next(iter(optimizer.optimizer.optimizer.state.values()))["step"]
    tensors = {}
    for name, parameter in _trained(model):
        tensors[f"{name}/step"] = step.cpu().clone()
        for key in MOMENTS:
            tensors[f"{name}/{key}"] = safe_get_full_optimizer_state(parameter, key).cpu()
    return tensors


def load_optimizer(model: nn.Module, optimizer, tensors: dict[str, Tensor]) -> None:
    """Give each process its part of the tensors of a file."""
    for name, parameter in _trained(model):
        for key in MOMENTS:
            _set(parameter, tensors[f"{name}/{key}"], key)
    for state in optimizer.optimizer.optimizer.state.values():
        state["step"].copy_(tensors[f"{name}/step"])


def _set(parameter: nn.Parameter, value: Tensor, key: str) -> None:
    if not hasattr(parameter, "ds_tensor"):
        return safe_set_full_optimizer_state(parameter, value, key)
    # That fails in ZeRO-3 for a size that the number of processes does not divide.
    size, rank = parameter.ds_tensor.numel(), torch.distributed.get_rank()
    padding = size * torch.distributed.get_world_size() - value.numel()
    part = pad(value.flatten(), (0, padding))[rank * size :][:size]
    return safe_set_local_optimizer_state(parameter, part, key)


def _trained(model: nn.Module) -> list[tuple[str, nn.Parameter]]:
    return [(n, p) for n, p in model.module.named_parameters() if p.requires_grad]
