"""The full state of an optimizer, by parameter name, independent of how parameters are sharded.

Tensors are saved in safetensors format. Prodigy and schedule-free optimizers also have Python
numbers in their state or parameter groups. These numbers are saved in the metadata of the file.
"""

import json
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor, nn
from torch.distributed.tensor import DTensor, distribute_tensor
from torch.optim import Optimizer

from errors import RunError

# Entries of a parameter group that are not saved: a resumed run sets them again.
OWN = {"params", "lr", "initial_lr", "lr_factor", "weight_decay", "eps", "momentum"}
METADATA = "optimizer"
# Parts that DDP, torch.compile and activation checkpointing insert into parameter names.
WRAPPERS = {"module", "_orig_mod", "_checkpoint_wrapped_module"}


@dataclass
class OptimizerState:
    """State of an optimizer.

    Attributes:
        tensors: Tensors of the state, by `PARAMETER/KEY`.
        numbers: Python numbers of the state, by `PARAMETER/KEY`.
        groups: Saved numbers of the parameter groups, one dict for each group.
    """

    tensors: dict[str, Tensor]
    numbers: dict[str, float] = field(default_factory=dict)
    groups: list[dict[str, float]] = field(default_factory=list)

    @property
    def nbytes(self) -> int:
        return sum(tensor.nbytes for tensor in self.tensors.values())

    def save(self, path: Path) -> None:
        content = json.dumps({"numbers": self.numbers, "groups": self.groups})
        save_file(self.tensors, path, metadata={METADATA: content})

    @classmethod
    def load(cls, path: Path) -> "OptimizerState":
        """Read a file.

        Raises:
            RunError: The file cannot be read.
        """
        try:
            with safe_open(path, framework="pt") as file:
                tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
                content = json.loads((file.metadata() or {}).get(METADATA, "{}"))
        except (OSError, SafetensorError, ValueError) as error:
            raise RunError(f"{path}: cannot be read as an optimizer state ({error})") from None
        # Copy the tensors: results on a CPU depend on their alignment in memory.
        tensors = {name: tensor.clone() for name, tensor in tensors.items()}
        return cls(tensors, content.get("numbers", {}), content.get("groups", []))


def gather(model: nn.Module, optimizer: Optimizer, is_main: bool) -> OptimizerState:
    """Gather the full state on the main rank; every rank has to call this function.

    Parameters that have never had a gradient have no state.
    """
    state = OptimizerState({}, groups=[_numbers(group) for group in optimizer.param_groups])
    seen: set[int] = set()
    for name, parameter in named_parameters(model):
        for key, value in optimizer.state.get(parameter, {}).items():
            if isinstance(value, DTensor):
                value = value.full_tensor()
            if isinstance(value, Tensor) and is_main:
                full = value.detach().cpu().contiguous()
                # safetensors rejects tensors that share memory, as in the state of some optimizers.
                state.tensors[f"{name}/{key}"] = full.clone() if full.data_ptr() in seen else full
                seen.add(full.data_ptr())
            elif isinstance(value, (int, float)):
                state.numbers[f"{name}/{key}"] = value
    return state


def scatter(model: nn.Module, optimizer: Optimizer, state: OptimizerState) -> None:
    """Load a full state; each rank keeps its shard.

    Raises:
        KeyError: The state has a parameter that the optimizer does not have.
        RunError: The state has a different number of parameter groups.
    """
    groups = {p: group for group in optimizer.param_groups for p in group["params"]}
    parameters = dict(named_parameters(model))
    for place, value in [*state.tensors.items(), *state.numbers.items()]:
        name, _, key = place.rpartition("/")
        parameter = parameters.get(name)
        if parameter not in groups:
            raise KeyError(name)
        values = optimizer.state[parameter]
        is_tensor = isinstance(value, Tensor)
        values[key] = _part(value, key, parameter, groups[parameter]) if is_tensor else value
    # Checkpoints of earlier versions do not contain the groups.
    if state.groups and len(state.groups) != len(optimizer.param_groups):
        raise RunError(
            f"model/optimization.py: build_optimizer creates {len(optimizer.param_groups)} "
            f"parameter groups; expected {len(state.groups)}, as in the checkpoint"
        )
    for group, saved in zip(optimizer.param_groups, state.groups, strict=False):
        group.update({key: value for key, value in saved.items() if key not in OWN})


def named_parameters(model: nn.Module) -> Iterator[tuple[str, nn.Parameter]]:
    """Yield parameters with their names in the unwrapped model."""
    for name, parameter in model.named_parameters():
        yield ".".join(part for part in name.split(".") if part not in WRAPPERS), parameter


def _part(value: Tensor, key: str, parameter: nn.Parameter, group: dict[str, Any]) -> Tensor:
    """Return this rank's shard of a full tensor, on the device that the optimizer expects."""
    if isinstance(parameter, DTensor) and value.shape == parameter.shape:
        device = parameter.device_mesh.device_type
        return distribute_tensor(value.to(device), parameter.device_mesh, parameter.placements)
    # torch keeps the step counter on the CPU unless the optimizer is fused or capturable.
    is_counter = key == "step" and not group.get("fused") and not group.get("capturable")
    return value if is_counter else value.to(parameter.device)


def _numbers(group: dict[str, Any]) -> dict[str, float]:
    """Return the numbers in a parameter group, without the entries in `OWN`."""
    return {
        key: value
        for key, value in group.items()
        if key not in OWN and isinstance(value, (int, float)) and not isinstance(value, bool)
    }
