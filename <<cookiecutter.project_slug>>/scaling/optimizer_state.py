"""The optimizer's tensors, whole, by the names of their parameters: the same for any sharding."""

from pathlib import Path

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch.distributed.checkpoint.state_dict import (
    StateDictOptions,
    get_optimizer_state_dict,
    set_optimizer_state_dict,
)

from errors import RunError

from .sharding import is_zero


def optimizer_tensors(
    model: torch.nn.Module, optimizer: torch.optim.Optimizer
) -> dict[str, torch.Tensor]:
    """Gather them, on one process; all have to call this."""
    if is_zero(model):
        from . import zero

        return zero.optimizer_tensors(model, optimizer)
    whole = StateDictOptions(full_state_dict=True, cpu_offload=True)
    state_dict = get_optimizer_state_dict(model, optimizer, options=whole)
    return {
        f"{name}/{key}": torch.as_tensor(value).contiguous()
        for name, values in state_dict.get("state", {}).items()
        for key, value in values.items()
    }


def load_optimizer(model: torch.nn.Module, optimizer: torch.optim.Optimizer, path: Path) -> None:
    """Give an optimizer the tensors of a file.

    Raises:
        RunError: it is not a file of this model's optimizer.
    """
    try:
        tensors = load_file(path)
        if is_zero(model):
            from . import zero

            return zero.load_optimizer(model, optimizer, tensors)
        # Names and hyperparameters of this run; the numbers are those of the checkpoint.
        state_dict = get_optimizer_state_dict(model, optimizer)
        state_dict["state"] = {
            name: {key: tensors[f"{name}/{key}"] for key in values}
            for name, values in state_dict["state"].items()
        }
    except (OSError, SafetensorError, KeyError) as error:
        raise RunError(f"{path}: not the optimizer of this model ({error})") from None
    whole = StateDictOptions(full_state_dict=True)
    set_optimizer_state_dict(model, optimizer, state_dict, options=whole)
