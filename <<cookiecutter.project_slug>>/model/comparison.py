"""Run a model to compare it with its base model, or to check attention between documents."""

import copy
import inspect
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn

from .adapter import base_tensors, copy_adapter, has_adapter

TOLERANCE = 1e-5  # relative to the largest absolute value of a logit


@contextmanager
def evaluating(model: nn.Module) -> Iterator[None]:
    """Run the block in evaluation mode, without gradients; then restore the mode of each module."""
    modes = [(module, module.training) for module in model.modules()]
    model.eval()
    try:
        with torch.no_grad():
            yield
    finally:
        for module, mode in modes:
            module.training = mode


def difference_to_base(model: Any, batch: dict[str, Tensor]) -> str | None:
    """Return the first difference between a `Wrapper` and its base model alone, or None.

    Args:
        batch: Input of both models. Their logits are compared bit for bit.
    """
    base = model.base_model
    name = type(base).__name__
    own = [k for k in model.state_dict() if not k.startswith(f"{model.base_model_prefix}.")]
    if own:
        return f"{own[0]} is not a tensor of {name}"
    if not type(base).__module__.startswith("transformers.models."):
        return f"{name} is not a model of transformers"
    with torch.device("meta"):
        names = type(base)(copy.deepcopy(base.config)).state_dict().keys()
    tensors = base_tensors(base)
    if different := sorted(names ^ tensors.keys()):
        return f"{name} and model/ differ in the tensor {different[0]}"
    alone, info = type(base).from_pretrained(
        None,
        config=copy.deepcopy(base.config),
        state_dict=tensors,
        dtype=base.dtype,
        attn_implementation=base.config._attn_implementation,
        output_loading_info=True,
    )
    if keys := [*info["missing_keys"], *info["unexpected_keys"], *info["mismatched_keys"]]:
        return f"{name} and model/ differ in the tensor {keys[0]}"
    if has_adapter(base):
        copy_adapter(base, alone)
    inputs = model.without_labels(batch)
    logits = model.forward(**inputs).logits
    alone = alone.eval().to(model.device)
    if not torch.equal(logits, alone(**inputs).logits):
        return f"the logits differ from those of {name}"
    return None


def check_documents(lm: Any, option: str) -> None:
    """Check that a model masks attention between documents that are concatenated in one row.

    The position ids of a row start again at 0 at the beginning of each document.

    Args:
        lm: A causal language model.
        option: Name of the command line option that requires the mask; shown in the error message.

    Raises:
        ValueError: The model does not accept `position_ids`, or the model or its attention
            implementation does not apply this mask.
    """
    name = type(lm).__name__
    if "position_ids" not in inspect.signature(lm.forward).parameters:
        raise ValueError(f"{option}: {name} does not accept position_ids")
    ids = torch.arange(3, 27, device=lm.device).view(2, 12) % lm.config.vocab_size
    ids[1, 5:] = ids[0, 5:]  # the rows differ only in their first documents
    positions = torch.cat([torch.arange(5), torch.arange(7)]).repeat(2, 1).to(lm.device)
    with evaluating(lm):
        outputs = lm(input_ids=ids, position_ids=positions, use_cache=False)
    first, second = outputs.logits[:, 5:]
    if (first - second).abs().max() > TOLERANCE * first.abs().max():
        raise ValueError(f"{option}: {name} does not mask attention between documents")
