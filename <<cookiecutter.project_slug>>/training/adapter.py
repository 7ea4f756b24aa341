"""Add a low-rank adapter (LoRA) to a base model, and check the base model."""

import json
from pathlib import Path
from typing import Any

import torch
from transformers import PreTrainedModel

from errors import RunError
from model.adapter import CONFIG_FILE, adapter_config, has_adapter, hash_base
from model.revision import split_revision

from .config import RunConfig
from .state import STATE_FILE, SavedRun


def is_adapter(folder: Path) -> bool:
    """Return whether a folder contains a PEFT adapter."""
    return (folder / CONFIG_FILE).is_file()


def base_of(folder: Path) -> str:
    """Return the path or Hub id of the base model of a saved adapter."""
    config = json.loads((folder / CONFIG_FILE).read_text(encoding="utf-8"))
    return str(config.get("base_model_name_or_path"))


def holds_adapter(model: torch.nn.Module) -> bool:
    """Return whether a model has an adapter.

    Checkpoints of such a model contain the trained parameters, but not the frozen ones.
    """
    return hasattr(model, "add_lora") and has_adapter(model.base_model)


def prepare_base(model_config: Any, config: RunConfig) -> None:
    """Check that the base model has weights, and set the dtype in which they are loaded.

    Raises:
        RunError: `model_config.base_has_weights` is false or missing.
    """
    if not getattr(model_config, "base_has_weights", False):
        raise RunError(
            f"--lora_rank {config.lora_rank}: {config.model_id} has no weights to adapt; "
            "expected a pretrained base model"
        )
    model_config.load_options["dtype"] = getattr(torch, config.base_dtype)


def add_adapter(model: Any, config: RunConfig, commit: str | None) -> None:
    """Add an adapter with new weights to the base model of a new run.

    Args:
        commit: Hub commit of the base model, to save with the adapter; None for a local folder.

    Raises:
        RunError: PEFT cannot add the adapter, for example because `--lora_targets` has a name that
            matches no module supported by LoRA.
    """
    name, _ = split_revision(config.model_id)
    place = Path(name)
    try:
        model.add_lora(
            r=config.lora_rank,
            lora_alpha=config.lora_alpha,
            target_modules=list(config.lora_targets),
            use_dora=config.lora_dora,
            base_model_name_or_path=str(place.resolve()) if place.is_dir() else name,
            revision=commit,
        )
    except (ValueError, TypeError, NotImplementedError) as error:
        reason = str(error).splitlines()[0]
        names = " ".join(config.lora_targets)
        raise RunError(f"--lora_targets {names}: no adapter can be added ({reason})") from None


def check_form(model: Any, line: str, config: RunConfig) -> None:
    """Check that `Model` computes the same logits as its base model.

    Only the adapter is saved, so anything else that `Model` computes would be lost.

    Args:
        line: Return value of `model.choose_form`, which has compared the logits.

    Raises:
        RunError: The tensors or logits of `Model` and of its base model differ, or cannot be
            compared.
    """
    if not model.saves_stock:
        raise RunError(
            f"--lora_rank {config.lora_rank}: expected a Model that computes the same logits as "
            f"its base model, since only the adapter is saved; without an adapter, {line}"
        )


def moved_base(config: RunConfig) -> str | None:
    """Return `--model_id` if it differs from that of the resumed run, else None."""
    assert config.resumed is not None
    return None if config.model_id == config.resumed.args["model_id"] else config.model_id


def load_options(folder: Path, model_id: str | None) -> dict[str, Any]:
    """Return the options for loading the base model of a saved adapter.

    Args:
        model_id: New path or Hub id of the base model if it was moved, else None.
    """
    options: dict[str, Any] = {"dtype": torch.float32}
    if (folder / STATE_FILE).is_file():
        options["dtype"] = getattr(torch, SavedRun.read(folder).args["base_dtype"])
    return options if model_id is None else {**options, "base_model_id": model_id}


def compare_base(model: PreTrainedModel, folder: Path) -> None:
    """Compare the weights of the base model with those that the adapter was trained on.

    Only hashes are compared. The saved hash is in training_state.json; without this file, do
    nothing.

    Raises:
        RunError: The weights differ.
    """
    if not (folder / STATE_FILE).is_file():
        return
    base = model.base_model
    if hash_base(base) != SavedRun.read(folder).base:
        name = adapter_config(base).base_model_name_or_path
        raise RunError(
            f"{folder}: the weights of {name} differ from those that the adapter was trained on; "
            "expected the same base model"
        )
