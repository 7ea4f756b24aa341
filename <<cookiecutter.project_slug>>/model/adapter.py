"""A low-rank adapter (LoRA) of PEFT on a base model: add it, save it, load it, merge it."""

import copy
import hashlib
import importlib
import warnings
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file, save_file
from torch import Tensor, nn
from transformers import GenerationConfig, PreTrainedModel
from transformers.utils import cached_file, find_adapter_config_file

CONFIG_FILE = "adapter_config.json"
WEIGHTS_FILE = "adapter_model.safetensors"
# The configuration of the base model as it was trained, with its labels. Not config.json: with a
# file of that name transformers would look for the base model's weights in the same folder.
BASE_CONFIG_FILE = "base_config.json"
GENERATION_FILE = "generation_config.json"
NAME = "default"  # of the adapter, in PEFT
PREFIX = "base_model.model."  # of all names in an adapter's file
ALL_LINEAR = "all-linear"


def has_adapter(base: nn.Module) -> bool:
    """Whether an adapter has been added to a base model."""
    return hasattr(base, "peft_config")


def find_adapter(path: str, **hub: Any) -> Path | None:
    """Return the folder of an adapter, fetched from the Hub if `path` is no folder; else None."""
    found = find_adapter_config_file(path, **hub)
    if found is None:
        return None
    for name in (WEIGHTS_FILE, BASE_CONFIG_FILE, GENERATION_FILE):
        cached_file(path, name, _raise_exceptions_for_missing_entries=False, **hub)
    return Path(found).parent


def task_type(auto_class: str) -> str | None:
    """Return PEFT's name of a task, which its Auto classes compare; None if it has none."""
    names = {kind.__name__: name for name, kind in _peft().MODEL_TYPE_TO_PEFT_MODEL_MAPPING.items()}
    return names.get(auto_class.replace("AutoModel", "PeftModel", 1))


def add_adapter(base: PreTrainedModel, new_weights: Iterable[str], **options: Any) -> None:
    """Freeze a base model and add an adapter with new weights to it.

    The head of a model that does not generate is trained whole, and so is each module with a
    tensor that the base model's files do not have.

    Args:
        new_weights: Names of these tensors.
        options: Arguments of `peft.LoraConfig`.

    Raises:
        ValueError: `target_modules` has a name of no module, or of one without a low-rank form.
    """
    peft = _peft()
    targets = options["target_modules"]
    if targets == [ALL_LINEAR]:
        options["target_modules"] = ALL_LINEAR
    whole = _trained_whole(base, new_weights)
    config = peft.LoraConfig(modules_to_save=sorted(whole) or None, **options)
    _inject(base, config)
    adapted = [name for name, _ in _adapted(base)]
    for target in targets:
        is_found = any(f".{name}".endswith(f".{target}") for name in adapted)
        if target != ALL_LINEAR and not is_found:
            raise ValueError(f"{target} is no module of {type(base).__name__} that can have one")


def load_adapter(base: PreTrainedModel, folder: Path) -> None:
    """Freeze a base model and add a saved adapter to it, which is trained further.

    Raises:
        ValueError: The adapter is of another kind, or its tensors are not those of this model.
    """
    peft = _peft()
    config = peft.PeftConfig.from_pretrained(str(folder))
    if config.peft_type != peft.PeftType.LORA:
        raise ValueError(f"an adapter of the type {config.peft_type.value}; expected LORA")
    config.inference_mode = False
    config.megatron_config = None  # with one, PEFT would import a module named in the file
    _inject(base, config)
    saved = load_file(folder / WEIGHTS_FILE)
    tensors = {name.removeprefix(PREFIX): tensor for name, tensor in saved.items()}
    if different := sorted(tensors.keys() ^ adapter_tensors(base).keys()):
        raise ValueError(f"{WEIGHTS_FILE} and {type(base).__name__} differ in {different[0]}")
    peft.set_peft_model_state_dict(base, tensors)
    if (folder / GENERATION_FILE).is_file():
        base.generation_config = GenerationConfig.from_pretrained(folder)


def save_adapter(
    base: PreTrainedModel, folder: Path, tensors: dict[str, Tensor] | None = None
) -> None:
    """Save an adapter as PEFT does, and the configurations of the base model beside it."""
    folder.mkdir(parents=True, exist_ok=True)
    own = adapter_tensors(base, tensors)
    named = {PREFIX + name: tensor.contiguous() for name, tensor in own.items()}
    save_file(named, folder / WEIGHTS_FILE, {"format": "pt"})
    config = copy.copy(adapter_config(base))
    config.inference_mode = True
    if not isinstance(config.target_modules, str):  # a set, which has no order
        config.target_modules = sorted(config.target_modules)
    config.save_pretrained(str(folder))
    base.config.to_json_file(folder / BASE_CONFIG_FILE)
    if base.can_generate():
        base.generation_config.save_pretrained(folder)


def copy_adapter(base: PreTrainedModel, other: PreTrainedModel) -> None:
    """Add the adapter of a base model to another instance of the same architecture."""
    _inject(other, copy.deepcopy(adapter_config(base)))
    _peft().set_peft_model_state_dict(other, adapter_tensors(base))


def merge_adapter(base: PreTrainedModel) -> None:
    """Add the adapter to the weights, and restore the layers of the base model.

    Of tied weights with an adapter on one of them, only that one changes: they are untied.
    """
    for name, module in list(_adapted(base)):
        layer = module.get_base_layer()
        _untie(base, layer.weight)
        module.merge(safe_merge=True)
        base.set_submodule(name, layer)
    for name, module in list(_whole(base)):
        base.set_submodule(name, module.modules_to_save[NAME])
    del base.peft_config


def adapter_config(base: nn.Module) -> Any:
    """Return the `peft.LoraConfig` of the adapter."""
    return base.peft_config[NAME]  # type: ignore[union-attr, index, operator]


def adapter_tensors(base: nn.Module, tensors: dict[str, Tensor] | None = None) -> dict[str, Tensor]:
    """Return the tensors of the adapter, by PEFT's names without their prefix.

    Args:
        tensors: All tensors of the base model, or those that are trained.
    """
    tensors = base.state_dict() if tensors is None else tensors
    # By default PEFT saves whole embeddings if they have an adapter. They are not trained.
    return _peft().get_peft_model_state_dict(base, tensors, save_embedding_layers=False)


def base_tensors(base: nn.Module) -> dict[str, Tensor]:
    """Return the tensors that belong to the base model, by its own names."""
    inserted = ("base_layer", "original_module")
    result = {}
    for name, tensor in base.state_dict().items():
        parts = name.split(".")
        if "modules_to_save" in parts or any(part.startswith("lora_") for part in parts):
            continue
        result[".".join(part for part in parts if part not in inserted)] = tensor
    return result


def hash_base(base: nn.Module) -> str:
    """Return a hash of the frozen weights on which the adapter was trained."""
    replaced = tuple(f"{name}." for name, _ in _whole(base))
    digest = hashlib.sha256()
    for name, tensor in sorted(base_tensors(base).items()):
        if not name.startswith(replaced):
            digest.update(name.encode())
            digest.update(tensor.detach().cpu().contiguous().view(-1).view(torch.uint8).numpy())
    return digest.hexdigest()


def _peft() -> Any:
    """Import PEFT, which is needed only with an adapter.

    Not by a statement: transformers would require it for each checkpoint that holds this file.
    """
    return importlib.import_module("peft")


def _inject(base: PreTrainedModel, config: Any) -> None:
    peft = _peft()
    with warnings.catch_warnings():  # of Conv1D, and of tied weights: see `merge_adapter`
        warnings.simplefilter("ignore")
        peft.inject_adapter_in_model(config, base)
    for parameter in base.parameters():
        if parameter.requires_grad:
            parameter.data = parameter.data.float()
    if base.dtype != torch.float32:
        for _, module in _whole(base):
            module.register_forward_pre_hook(_to_float32, with_kwargs=True)


def _to_float32(module: nn.Module, args: tuple, kwargs: dict) -> tuple[tuple, dict]:
    """Let a module that is trained in float32 take the outputs of frozen ones in 16 bits."""
    return tuple(map(_as_float32, args)), {name: _as_float32(v) for name, v in kwargs.items()}


def _as_float32(value: Any) -> Any:
    is_float = isinstance(value, Tensor) and value.is_floating_point()
    return value.float() if is_float else value


def _adapted(base: nn.Module) -> Iterator[tuple[str, Any]]:
    layers = importlib.import_module("peft.tuners.tuners_utils").BaseTunerLayer
    return ((name, module) for name, module in base.named_modules() if isinstance(module, layers))


def _whole(base: nn.Module) -> Iterator[tuple[str, Any]]:
    wrapper = importlib.import_module("peft.utils").ModulesToSaveWrapper
    return ((name, module) for name, module in base.named_modules() if isinstance(module, wrapper))


def _trained_whole(base: PreTrainedModel, new_weights: Iterable[str]) -> set[str]:
    """Names of the modules that are trained whole; see `add_adapter`."""
    names = set() if base.can_generate() else _head(base)
    for weight in new_weights:
        if not any(weight.startswith(f"{name}.") for name in names):
            names.add(weight.rpartition(".")[0])
    return names


def _head(base: PreTrainedModel) -> set[str]:
    """Names of the modules beside the body: architectures have no common name for the head."""
    body = base.base_model
    if body is base:
        raise ValueError(f"{type(base).__name__} has no module {base.base_model_prefix!r}")
    children = dict(base.named_children())
    return {name for name, child in children.items() if child is not body and _has_weights(child)}


def _has_weights(module: nn.Module) -> bool:
    return next(module.parameters(), None) is not None


def _untie(base: PreTrainedModel, weight: Tensor) -> None:
    """Give each module that shares a weight a copy of its own."""
    parameters = base.named_parameters(remove_duplicate=False)
    names = [name for name, parameter in parameters if parameter is weight]
    if len(names) < 2:
        return
    for name in names:
        place, _, own = name.rpartition(".")
        setattr(base.get_submodule(place), own, nn.Parameter(weight.detach().clone()))
    base.config.tie_word_embeddings = False
    base.config.get_text_config().tie_word_embeddings = False
