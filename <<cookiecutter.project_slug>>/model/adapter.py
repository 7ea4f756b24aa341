"""Add, save, load and merge a PEFT low-rank adapter (LoRA) of a base model."""

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
# Configuration of the base model during training, including the labels. The file is not named
# config.json, because transformers would then expect the weights of the base model beside it.
BASE_CONFIG_FILE = "base_config.json"
GENERATION_FILE = "generation_config.json"
NAME = "default"  # name of the adapter in PEFT
PREFIX = "base_model.model."  # prefix of all tensor names in an adapter file
ALL_LINEAR = "all-linear"


def has_adapter(base: nn.Module) -> bool:
    """Return whether an adapter has been added to a base model."""
    return hasattr(base, "peft_config")


def find_adapter(path: str, **hub: Any) -> Path | None:
    """Return the local folder of the adapter in `path`, or None if `path` has no adapter.

    Args:
        path: A local folder, or a Hub id. The files of an adapter on the Hub are downloaded.
        hub: Arguments of `transformers.utils.cached_file`, such as `revision`.
    """
    found = find_adapter_config_file(path, **hub)
    if found is None:
        return None
    for name in (WEIGHTS_FILE, BASE_CONFIG_FILE, GENERATION_FILE):
        cached_file(path, name, _raise_exceptions_for_missing_entries=False, **hub)
    return Path(found).parent


def task_type(auto_class: str) -> str | None:
    """Return PEFT's task type, such as "CAUSAL_LM", for an Auto class; None if there is none.

    The task type is saved with an adapter, since PEFT's Auto classes check it when they load the
    adapter.

    Args:
        auto_class: Name of an Auto class of transformers.
    """
    names = {kind.__name__: name for name, kind in _peft().MODEL_TYPE_TO_PEFT_MODEL_MAPPING.items()}
    return names.get(auto_class.replace("AutoModel", "PeftModel", 1))


def add_adapter(base: PreTrainedModel, new_weights: Iterable[str], **options: Any) -> None:
    """Freeze a base model and add an untrained adapter to it.

    Two kinds of modules get no adapter, and all of their weights are trained: the head of a model
    that does not generate text; and modules with a tensor that is missing from the files of the
    base model.

    Args:
        new_weights: Names of the tensors missing from the files of the base model.
        options: Arguments of `peft.LoraConfig`.

    Raises:
        ValueError: `target_modules` has a name that matches no module supported by LoRA; or the
            base model does not generate text, and has no module with the name in
            its attribute `base_model_prefix`.
    """
    peft = _peft()
    targets = options["target_modules"]
    if targets == [ALL_LINEAR]:
        options["target_modules"] = ALL_LINEAR
    full = _names_of_fully_trained(base, new_weights)
    config = peft.LoraConfig(modules_to_save=sorted(full) or None, **options)
    _inject(base, config)
    adapted = [name for name, _ in _adapted(base)]
    for target in targets:
        is_found = any(f".{name}".endswith(f".{target}") for name in adapted)
        if target != ALL_LINEAR and not is_found:
            raise ValueError(f"{type(base).__name__} has no module {target!r} that supports LoRA")


def load_adapter(base: PreTrainedModel, folder: Path) -> None:
    """Freeze a base model and add a saved adapter to it; the adapter can be trained further.

    Raises:
        ValueError: The adapter is not a LoRA adapter, or has other tensor names than the model.
    """
    peft = _peft()
    config = peft.PeftConfig.from_pretrained(str(folder))
    if config.peft_type != peft.PeftType.LORA:
        raise ValueError(f"an adapter of type {config.peft_type.value}; expected LORA")
    config.inference_mode = False
    config.megatron_config = None  # otherwise PEFT would import the module given in the file
    _inject(base, config)
    saved = load_file(folder / WEIGHTS_FILE)
    tensors = {name.removeprefix(PREFIX): tensor for name, tensor in saved.items()}
    if different := sorted(tensors.keys() ^ adapter_tensors(base).keys()):
        raise ValueError(
            f"{WEIGHTS_FILE} and {type(base).__name__} differ in the tensor {different[0]}"
        )
    peft.set_peft_model_state_dict(base, tensors)
    if (folder / GENERATION_FILE).is_file():
        base.generation_config = GenerationConfig.from_pretrained(folder)


def save_adapter(
    base: PreTrainedModel, folder: Path, tensors: dict[str, Tensor] | None = None
) -> None:
    """Save an adapter in PEFT's format, with the configuration of the base model.

    If the base model generates text, its generation configuration is saved, too.

    Args:
        tensors: See `adapter_tensors`.
    """
    folder.mkdir(parents=True, exist_ok=True)
    own = adapter_tensors(base, tensors)
    named = {PREFIX + name: tensor.contiguous() for name, tensor in own.items()}
    save_file(named, folder / WEIGHTS_FILE, {"format": "pt"})
    config = copy.copy(adapter_config(base))
    config.inference_mode = True
    if not isinstance(config.target_modules, str):  # a set, whose order is arbitrary
        config.target_modules = sorted(config.target_modules)
    config.save_pretrained(str(folder))
    base.config.to_json_file(folder / BASE_CONFIG_FILE)
    if base.can_generate():
        base.generation_config.save_pretrained(folder)


def copy_adapter(base: PreTrainedModel, other: PreTrainedModel) -> None:
    """Add the adapter of a base model to another model of the same architecture."""
    _inject(other, copy.deepcopy(adapter_config(base)))
    _peft().set_peft_model_state_dict(other, adapter_tensors(base))


def merge_adapter(base: PreTrainedModel) -> None:
    """Merge the adapter into the weights of the base model, and remove PEFT's modules.

    If a layer with an adapter shares its weight with another module, the weight is first untied,
    so that only this layer changes.
    """
    for name, module in list(_adapted(base)):
        layer = module.get_base_layer()
        _untie(base, layer.weight)
        module.merge(safe_merge=True)
        base.set_submodule(name, layer)
    for name, module in list(_fully_trained(base)):
        base.set_submodule(name, module.modules_to_save[NAME])
    del base.peft_config


def adapter_config(base: nn.Module) -> Any:
    """Return the `peft.LoraConfig` of the adapter."""
    return base.peft_config[NAME]  # type: ignore[union-attr, index, operator]


def adapter_tensors(base: nn.Module, tensors: dict[str, Tensor] | None = None) -> dict[str, Tensor]:
    """Return the tensors of the adapter by their PEFT names, without `PREFIX`.

    Args:
        tensors: All tensors of the base model, or only the trained ones. Default: the state dict of
            `base`.
    """
    tensors = base.state_dict() if tensors is None else tensors
    # By default PEFT also saves the full embeddings if they have an adapter, although they are
    # frozen.
    return _peft().get_peft_model_state_dict(base, tensors, save_embedding_layers=False)


def base_tensors(base: nn.Module) -> dict[str, Tensor]:
    """Return the tensors of the base model by their original names, without the adapter."""
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
    replaced = tuple(f"{name}." for name, _ in _fully_trained(base))
    digest = hashlib.sha256()
    for name, tensor in sorted(base_tensors(base).items()):
        if not name.startswith(replaced):
            digest.update(name.encode())
            digest.update(tensor.detach().cpu().contiguous().view(-1).view(torch.uint8).numpy())
    return digest.hexdigest()


def _peft() -> Any:
    """Import PEFT, which only adapters need.

    If this file had the statement `import peft`, transformers could load checkpoints that contain
    this file only if PEFT is installed.
    """
    return importlib.import_module("peft")


def _inject(base: PreTrainedModel, config: Any) -> None:
    peft = _peft()
    # PEFT warns about Conv1D, and about tied weights, which `merge_adapter` unties.
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        peft.inject_adapter_in_model(config, base)
    for parameter in base.parameters():
        if parameter.requires_grad:
            parameter.data = parameter.data.float()
    if base.dtype != torch.float32:
        for _, module in _fully_trained(base):
            module.register_forward_pre_hook(_to_float32, with_kwargs=True)


def _to_float32(module: nn.Module, args: tuple, kwargs: dict) -> tuple[tuple, dict]:
    """Convert the 16-bit inputs of a module that is trained in float32."""
    return tuple(map(_as_float32, args)), {name: _as_float32(v) for name, v in kwargs.items()}


def _as_float32(value: Any) -> Any:
    is_float = isinstance(value, Tensor) and value.is_floating_point()
    return value.float() if is_float else value


def _adapted(base: nn.Module) -> Iterator[tuple[str, Any]]:
    layers = importlib.import_module("peft.tuners.tuners_utils").BaseTunerLayer
    return ((name, module) for name, module in base.named_modules() if isinstance(module, layers))


def _fully_trained(base: nn.Module) -> Iterator[tuple[str, Any]]:
    wrapper = importlib.import_module("peft.utils").ModulesToSaveWrapper
    return ((name, module) for name, module in base.named_modules() if isinstance(module, wrapper))


def _names_of_fully_trained(base: PreTrainedModel, new_weights: Iterable[str]) -> set[str]:
    """Return the names of the modules to train fully; see `add_adapter`."""
    names = set() if base.can_generate() else _head(base)
    for weight in new_weights:
        if not any(weight.startswith(f"{name}.") for name in names):
            names.add(weight.rpartition(".")[0])
    return names


def _head(base: PreTrainedModel) -> set[str]:
    """Return the names of all top-level modules with weights except the body.

    These are the head, which has different names in different architectures.
    """
    body = base.base_model
    if body is base:
        raise ValueError(f"{type(base).__name__} has no module {base.base_model_prefix!r}")
    children = dict(base.named_children())
    return {name for name, child in children.items() if child is not body and _has_weights(child)}


def _has_weights(module: nn.Module) -> bool:
    return next(module.parameters(), None) is not None


def _untie(base: PreTrainedModel, weight: Tensor) -> None:
    """Give each module that shares `weight` its own copy of it."""
    parameters = base.named_parameters(remove_duplicate=False)
    names = [name for name, parameter in parameters if parameter is weight]
    if len(names) < 2:
        return
    for name in names:
        place, _, own = name.rpartition(".")
        setattr(base.get_submodule(place), own, nn.Parameter(weight.detach().clone()))
    base.config.tie_word_embeddings = False
    base.config.get_text_config().tie_word_embeddings = False
