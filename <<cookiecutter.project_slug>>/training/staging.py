"""Copy weights and optimizer state into host memory, so that training continues during a save."""

import copy
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import psutil
import torch
from torch import Tensor
from torch.distributed.tensor import DTensor
from torch.optim import Optimizer
from transformers import PreTrainedModel

CGROUPS = Path("/sys/fs/cgroup")
CONFIGS = ("config", "generation_config")


def live_memory(model: torch.nn.Module, optimizer: Optimizer) -> set[int]:
    """Return the storage addresses of the parameters, the buffers and the optimizer state."""
    states = [*optimizer.state.values()]
    moments = [value for values in states for value in values.values() if isinstance(value, Tensor)]
    return {_address(tensor) for tensor in [*model.parameters(), *model.buffers(), *moments]}


def bytes_to_copy(tensors: Iterable[Tensor], live: set[int]) -> int:
    """Return the size in bytes of the tensors that `stage` would copy."""
    return sum(tensor.nbytes for tensor in tensors if not _is_staged(tensor, live))


def stage(tensors: dict[str, Tensor], live: set[int]) -> None:
    """Replace the tensors of a dict with copies in host memory, unless they already are copies.

    Args:
        live: Storage addresses that the copies must not have: see `live_memory`.
    """
    for name, tensor in tensors.items():
        if not _is_staged(tensor, live):
            tensors[name] = tensor.detach().to("cpu", copy=True)


def with_own_configs(model: Any) -> Any:
    """Return a copy of a model with the same weight tensors, but with copied configurations.

    Generation during validation temporarily changes `generation_config` of the model. `copy.copy`
    would fail for a model that is sharded by FSDP2.
    """
    return _with_own_configs(model, {})


def free_memory() -> int:
    """Return the number of bytes of host memory that this process can still allocate.

    This respects the memory limits of control groups (version 2), as in containers and Slurm jobs.
    """
    free = psutil.virtual_memory().available
    for folder in _control_groups():
        limit = _read(folder / "memory.max").strip()
        if limit.isdecimal():
            used = int(_read(folder / "memory.current") or 0)
            stat = dict(line.split() for line in _read(folder / "memory.stat").splitlines())
            free = min(free, int(limit) - used + int(stat.get("inactive_file", 0)))
    return max(0, free)


def _with_own_configs(module: Any, copied: dict) -> Any:
    if not isinstance(module, PreTrainedModel):
        return module
    own = object.__new__(type(module))
    own.__dict__.update(module.__dict__)
    for name in CONFIGS:
        if name in own.__dict__:
            own.__dict__[name] = copy.deepcopy(own.__dict__[name], copied)
    children = module._modules.items()
    own.__dict__["_modules"] = {name: _with_own_configs(part, copied) for name, part in children}
    return own


def _is_staged(tensor: Tensor, live: set[int]) -> bool:
    return tensor.device.type == "cpu" and _address(tensor) not in live


def _address(tensor: Tensor) -> int:
    own = tensor.to_local() if isinstance(tensor, DTensor) else tensor
    return own.untyped_storage().data_ptr()


def _control_groups() -> list[Path]:
    """Return the folders of the control groups (version 2) of this process, if any."""
    for line in _read(Path("/proc/self/cgroup")).splitlines():
        if line.startswith("0::"):
            own = CGROUPS / line[3:].lstrip("/")
            return [folder for folder in (own, *own.parents) if folder.is_relative_to(CGROUPS)]
    return []


def _read(file: Path) -> str:
    try:
        return file.read_text(encoding="utf-8")
    except OSError:
        return ""
