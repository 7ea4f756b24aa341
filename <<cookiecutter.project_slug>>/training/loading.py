"""Load what a checkpoint or a base model holds: nothing in it is executed or unpickled."""

import argparse
import math

import torch
from torch import nn
from transformers import AutoTokenizer, PreTrainedModel, PreTrainedTokenizerBase

from errors import RunError


def load_tokenizer(model_id: str, is_optional: bool = False) -> PreTrainedTokenizerBase:
    """Load the tokenizer of a base model, or of a checkpoint.

    Raises:
        RunError: there is none.
    """
    try:
        return AutoTokenizer.from_pretrained(model_id)
    except Exception as error:  # of many kinds, one for each kind of file
        raise RunError(f"{model_id}: no tokenizer to be had there ({_reason(error)})") from None


def build_model(task, model_id, options, schema):
    config = task.build_config(model_id, options, schema)
    return task.model_class(config), getattr(config, "base_has_weights", False)


def load_model(model_class: type[PreTrainedModel], folder: str) -> PreTrainedModel:
    """Load a model to be trained on: in float32, whatever it was saved in.

    Raises:
        RunError: a file cannot be read, or the weights are not those of `model_class`.
    """
    try:
        model, report = model_class.from_pretrained(
            folder, dtype=torch.float32, use_safetensors=True, output_loading_info=True
        )
    except Exception as error:
        raise RunError(f"{folder}: the model cannot be loaded ({_reason(error)})") from None
    # transformers itself goes on, with random weights for what is missing.
    for fault in ("missing_keys", "unexpected_keys", "mismatched_keys"):
        if names := sorted(map(str, report[fault])):
            reason = fault.replace("_", " ")
            raise RunError(f"{folder}: not weights of this model ({reason}: {', '.join(names)})")
    return model


def set_up(model: PreTrainedModel, args: argparse.Namespace) -> None:
    """Choose how the model computes: what it computes stays the same.

    Raises:
        RunError: the model cannot do what was asked for, or has no positions for `max_len` tokens.
    """
    if (positions := learned_positions(model)) < args.max_len:
        raise RunError(f"--max_len {args.max_len}: {args.model_id} has {positions} positions")
    device = str(torch.accelerator.current_accelerator() or "cpu")
    if (name := args.attn_implementation) == "flex_attention" and device in ("cpu", "mps"):
        raise RunError(f"--attn_implementation {name}: none to train with on {device}; try sdpa")
    try:
        if name is not None:
            model.set_attn_implementation(name)
        if args.gradient_checkpointing:
            model.gradient_checkpointing_enable({"use_reentrant": False})
    except (ImportError, ValueError) as error:
        raise RunError(f"{args.model_id}: {_reason(error)}") from None
    if args.tf32:
        torch.set_float32_matmul_precision("high")
    if args.compile:
        # In place: the names of the weights stay as they are. One graph serves all lengths.
        model.compile(dynamic=True)


def learned_positions(model: PreTrainedModel) -> float:
    """The most tokens it can tell apart; infinite where positions are computed, not looked up."""
    parts = list(model.named_modules())
    configs = [part.config for _, part in parts if isinstance(part, PreTrainedModel)]
    limits = {getattr(config, "max_position_embeddings", None) for config in configs}
    tables = [part for name, part in parts if "position" in name or name.endswith("wpe")]
    sizes = [(t.num_embeddings, t.padding_idx or -1) for t in tables if isinstance(t, nn.Embedding)]
    # RoBERTa begins to count behind its padding id; OPT and BART have two rows more than they say.
    rows = [n - 2 if n - 2 in limits else n - pad - 1 for n, pad in sizes if {n, n - 2} & limits]
    return min(rows, default=math.inf)


def _reason(error: Exception) -> str:
    return (str(error).strip().splitlines() or [type(error).__name__])[0]
