"""Models whose weights lie in parts on several devices: FSDP2, and ZeRO of DeepSpeed."""

from collections.abc import Iterator
from contextlib import contextmanager

import torch
from accelerate import Accelerator
from accelerate.utils import DistributedType
from torch.distributed.fsdp import FSDPModule
from transformers.integrations import unset_hf_deepspeed_config

from errors import RunError


def build_accelerator(**options) -> Accelerator:
    """`Accelerator(**options)`.

    Raises:
        RunError: the launcher was told to use DeepSpeed, which is not installed.
    """
    try:
        accelerator = Accelerator(**options)
    except ImportError as error:
        raise RunError(str(error)) from None
    # Under ZeRO-3 transformers would build parts of models, to which weights cannot be loaded.
    unset_hf_deepspeed_config()
    return accelerator


def prepare(
    accelerator: Accelerator,
    model: torch.nn.Module,
    optimizer: torch.optim.Optimizer,
    max_grad_norm: float,
) -> tuple[torch.nn.Module, torch.optim.Optimizer]:
    """`Accelerator.prepare`, for any model.

    Accelerate puts the embeddings into groups of their own, which torch refuses where more than two
    modules share a weight, as in BART, and which fails where a model does not name them. Unnamed,
    they stay with the model itself. The optimizer comes back without Accelerate's wrapper, which
    looks for a package on the disk in each step; DeepSpeed's keeps it, since there a backward pass
    steps as well.

    Raises:
        RunError: see `zero.configure`.
    """
    if accelerator.distributed_type == DistributedType.DEEPSPEED:
        from . import zero  # here and below: few have DeepSpeed

        zero.configure(accelerator, max_grad_norm)
        model, optimizer = accelerator.prepare(model, optimizer)
        zero.make_state(optimizer)
        return model, optimizer
    model.get_input_embeddings = model.get_output_embeddings = lambda: None
    prepared, wrapper = accelerator.prepare(model, optimizer)
    del model.get_input_embeddings, model.get_output_embeddings
    return prepared, wrapper.optimizer


def whole_state_dict(accelerator: Accelerator, model: torch.nn.Module) -> dict[str, torch.Tensor]:
    """Gather all weights, on one process; all have to call this.

    Each once, under its first name: gathered, what is shared by several modules comes in copies.
    """
    bare = accelerator.unwrap_model(model)
    names = {name for name, _ in bare.named_parameters(remove_duplicate=False)}
    copies = names - {name for name, _ in bare.named_parameters()}
    weights = accelerator.get_state_dict(model) or {}  # in ZeRO-3, None on other processes
    return {name: tensor for name, tensor in weights.items() if name not in copies}


@contextmanager
def whole(accelerator: Accelerator, model: torch.nn.Module, is_needed: bool) -> Iterator[None]:
    """Hold all weights in each process, so that each can generate without waiting for others."""
    if is_needed and is_zero(model) and model.zero_optimization_partition_weights():
        from . import zero

        with zero.whole(model):
            yield
        return
    parts = [m for m in model.modules() if isinstance(m, FSDPModule)] if is_needed else []
    for part in parts:
        part.set_reshard_after_forward(False, recurse=False)
        part.unshard()
    yield
    for part in parts:
        reshard = accelerator.state.fsdp_plugin.reshard_after_forward and part is not model
        part.set_reshard_after_forward(reshard, recurse=False)
        part.reshard()


def is_zero(model: torch.nn.Module) -> bool:
    """Whether DeepSpeed has prepared it."""
    return hasattr(model, "zero_optimization")
