"""Load models, configurations and tokenizers, without running code from their folders."""

import importlib.util
import os
import re
import zlib
from collections.abc import Mapping
from pathlib import Path
from pickle import UnpicklingError
from types import MappingProxyType

import torch
from safetensors import SafetensorError, safe_open
from tokenizers import Tokenizer
from transformers import AutoTokenizer, PreTrainedConfig, PreTrainedModel, PreTrainedTokenizerBase
from transformers.utils.hub import extract_commit_hash

from errors import RunError
from model.revision import split_revision

from .adapter import base_of, compare_base, is_adapter, load_options
from .config import ADAPTER_FILE, RunConfig
from .contract import Task
from .hub_files import find_file
from .packages import require

LOADING_ERRORS = (OSError, ValueError, ImportError, RuntimeError)
PROBE = "In 2024, O'Neill's naïve café-owners paid $1,234.56 (¥99)!\n\tおはよう\u3000世界  ok? 👍"


def load_tokenizer(model_id: str) -> PreTrainedTokenizerBase:
    """Load the tokenizer of a base model or a checkpoint; set a padding token if it has none.

    The padding token is then the EOS token, or the unknown token if there is no EOS token.

    Raises:
        RunError: The tokenizer cannot be loaded, or its tokens for a probe text differ from those
            of tokenizer.json.
    """
    model_id = os.path.expanduser(model_id)
    _check_folder(model_id)
    name, hub = split_revision(model_id)
    try:
        tokenizer = AutoTokenizer.from_pretrained(name, trust_remote_code=False, **hub)
    except Exception as error:  # each file format has its own errors
        raise RunError(
            f"{model_id}: cannot load a tokenizer ({_tokenizer_reason(error)})"
        ) from None
    _check_tokens(model_id, tokenizer)
    if tokenizer.pad_token is None:
        tokenizer.pad_token = tokenizer.eos_token or tokenizer.unk_token
    return tokenizer


def commit_of(model_id: str) -> str | None:
    """Return the commit of a Hub id, from its config.json in the local cache.

    Return None for a folder, or if the cache has no such file.
    """
    model_id = os.path.expanduser(model_id)
    if Path(model_id).is_dir():
        return None
    return extract_commit_hash(find_file(model_id, "config.json", local_files_only=True), None)


def build_config(
    task: Task,
    model_id: str,
    arguments: dict,
    tokenizer: PreTrainedTokenizerBase | None,
) -> PreTrainedConfig:
    """Build the configuration of a new model.

    Args:
        arguments: Arguments of `ModelConfig`, from the command line and the schema of the data.

    Raises:
        RunError: The configuration of the base model cannot be read, or an argument is invalid.
    """
    model_id = os.path.expanduser(model_id)
    _check_folder(model_id)
    saved: dict = {}
    try:
        if _may_have_config(task, model_id):
            name, hub = split_revision(model_id)
            saved, _ = PreTrainedConfig.get_config_dict(name, **hub)
        if not saved or saved.get("model_type") != getattr(task.config_class, "model_type", None):
            config = task.build_config(model_id, arguments)
        else:  # a checkpoint of this model class: keep the fields of its configuration
            config = task.config_class.from_dict({**saved, **arguments})
            config.name_or_path = model_id
            if hasattr(config, "base_model_id"):
                config.base_model_id = model_id
    except Exception as error:  # AutoConfig raises exceptions of many types
        raise _failure(f"{model_id}: cannot load a configuration", error) from None
    if tokenizer is not None and hasattr(config, "use_tokenizer"):
        config.use_tokenizer(tokenizer)
    return config


def build_model(
    model_class: type[PreTrainedModel], config: PreTrainedConfig, model_id: str
) -> tuple[PreTrainedModel, list[str]]:
    """Build a new model, with the weights of its base model.

    Returns:
        The model; and lines about its weights, for example about new and unused ones.

    Raises:
        RunError: The weights cannot be read, or do not match the base model.
    """
    model_id = os.path.expanduser(model_id)
    is_own = getattr(config, "name_or_path", "") == model_id
    try:
        model = _load(model_class, model_id, config) if is_own else model_class(config)
    except RunError:
        raise
    except (*LOADING_ERRORS, SafetensorError, UnpicklingError) as error:
        raise _failure(f"{model_id}: cannot load the model", error) from None
    info = getattr(model, "loading_info", None)
    notes = list(getattr(model, "notes", []))
    return model, notes + (_check_weights(model, info, model_id) if info else [])


def load_model(
    model_class: type[PreTrainedModel],
    folder: str,
    options: dict | None = None,
    base_model_id: str | None = None,
    compares_base: bool = True,
) -> PreTrainedModel:
    """Load a checkpoint to resume a run or to predict.

    The weights are loaded in float32. The frozen weights of an adapter's base model are loaded in
    the dtype of the training run if the checkpoint has a training_state.json.

    Args:
        options: Arguments of `ModelConfig`, from the command line of train.py. They take precedence
            over those in the config.json of the checkpoint. The config.json of a checkpoint in
            stock form (see `model.base.Wrapper`) contains no such arguments.
        base_model_id: New path or Hub id of the base model of an adapter, if it was moved.
        compares_base: Whether to compare the hash of an adapter's base model with the saved hash.

    Raises:
        RunError: The checkpoint cannot be loaded, for example because a file is missing, the
            weights do not match `model_class`, or the base model of an adapter has changed.
    """
    folder = os.path.expanduser(folder)
    _check_folder(folder)
    try:
        if is_adapter(Path(folder)):
            model = _load_adapter(model_class, Path(folder), options or {}, base_model_id)
            if compares_base:
                compare_base(model, Path(folder))
        else:
            _check_no_adapter(folder)
            model = _load(model_class, folder, options=options or {})
    except RunError:
        raise
    except Exception as error:
        raise _failure(f"{folder}: cannot load the model", error) from None
    # The rounding of some matrix products depends on the alignment of the tensors in memory. A
    # tensor from a file may not be aligned to 64 bytes. A copy is aligned, like every new tensor.
    for tensor in [*model.parameters(), *model.buffers()]:
        tensor.data = tensor.data.clone()
    return model


def set_up(model: PreTrainedModel, config: RunConfig) -> None:
    """Set attention backend, activation checkpointing, TF32 and compilation.

    Raises:
        RunError: The model or the device does not support one of these settings, or a package is
            missing.
    """
    device = str(torch.accelerator.current_accelerator() or "cpu")
    if (name := config.attn_implementation) == "flex_attention" and device in ("cpu", "mps"):
        raise RunError(
            f"--attn_implementation {name}: does not support training on {device}; use sdpa"
        )
    try:
        if name is not None:
            model.set_attn_implementation(name)
        if config.gradient_checkpointing:
            model.gradient_checkpointing_enable({"use_reentrant": False})
    except (ImportError, ValueError) as error:
        raise RunError(f"{config.model_id}: {_reason(error)}") from None
    if config.tf32:
        torch.set_float32_matmul_precision("high")
    if config.compile:
        # Compile in place, so that weights keep their names; use one graph for all lengths.
        model.compile(dynamic=True)


def hash_model(model: PreTrainedModel) -> int:
    """Return a checksum of a model's configuration and of the first row of each of its parameters.

    Hashing all values of a large model would take seconds. Models with different weights, for
    example after further training, differ in most parameters.
    """
    config = getattr(model, "config", None)  # `check_contract` refuses a model without one
    checksum = zlib.crc32(repr(config.to_dict() if config else {}).encode())
    for name, parameter in model.named_parameters():
        checksum = zlib.crc32(f"{name} {tuple(parameter.shape)}".encode(), checksum)
        if parameter.numel():
            row = parameter.detach()[(0,) * (parameter.ndim - 1)]
            checksum = zlib.crc32(row.double().cpu().numpy().tobytes(), checksum)
    return checksum


def _load(
    model_class: type[PreTrainedModel],
    folder: str,
    config: PreTrainedConfig | None = None,
    options: Mapping = MappingProxyType({}),
) -> PreTrainedModel:
    """Load all weights of a checkpoint with `from_pretrained`.

    `requires_grad`, and buffers that are not saved, are as the constructor of the model sets them.

    Raises:
        RunError: The weights of the checkpoint are not those of the model, for example because a
            weight is missing.
    """
    if not issubclass(model_class, PreTrainedModel):
        return model_class.from_pretrained(folder)
    name, hub = split_revision(folder)
    if options:
        saved, _ = PreTrainedConfig.get_config_dict(name, **hub)
        if saved.get("model_type") == model_class.config_class.model_type:
            config = model_class.config_class.from_dict({**saved, **options})
            options = {}
    model, report = model_class.from_pretrained(
        name,
        config=config,
        dtype=torch.float32,
        use_safetensors=True,
        output_loading_info=True,
        **hub,
        **options,
    )
    missing = set(map(str, report["missing_keys"])) | _left_out(model, Path(folder))
    # transformers itself would continue with random values for the missing weights.
    for kind, names in (
        ("missing", missing),
        ("unexpected", report["unexpected_keys"]),
        ("mismatched", report["mismatched_keys"]),
    ):
        if listed := ", ".join(sorted(map(str, names))[:8]):
            raise RunError(f"{folder}: not weights of this model ({kind} keys: {listed})")
    _as_constructed(model)
    return model


def _load_adapter(
    model_class: type[PreTrainedModel], folder: Path, options: dict, base_model_id: str | None
) -> PreTrainedModel:
    """Load an adapter and its base model.

    Raises:
        RunError: PEFT is not installed, `model_class` does not support adapters, or the base model
            or one of its weights is missing.
    """
    require("peft", "lora", f"{folder}: an adapter, which")
    if not hasattr(model_class, "add_lora"):
        raise RunError(f"{folder}: a PEFT adapter, which {model_class.__name__} cannot load")
    try:
        _check_folder(base_model_id or base_of(folder))
    except RunError as error:
        raise RunError(f"{folder}: its base model {error}") from None
    options = {**options, **load_options(folder, base_model_id)}
    model, info = model_class.from_pretrained(str(folder), output_loading_info=True, **options)
    _check_weights(model, info, str(folder))
    return model


def _check_no_adapter(model_id: str) -> None:
    """Check that `model_id` is not an adapter on the Hub; adapters are loaded only from folders.

    Raises:
        RunError: `model_id` is an adapter on the Hub.
    """
    if find_file(model_id, ADAPTER_FILE) is not None:
        raise RunError(
            f"{model_id}: an adapter on the Hub; expected a folder "
            f"(`hf download {split_revision(model_id)[0]} --local-dir FOLDER`)"
        )


def _left_out(model: PreTrainedModel, folder: Path) -> set[str]:
    """Return the names of missing tensors that transformers does not report.

    Missing tensors are tensors of the model that are in no weight file of `folder`.
    """
    patterns = [
        re.compile(pattern)
        for name in ("_keys_to_ignore_on_load_missing", "_keys_to_ignore_on_save")
        for pattern in getattr(type(model), name, None) or ()
    ]
    if not patterns:
        return set()
    saved: set[str] = set()
    for file in folder.glob("*.safetensors"):
        with safe_open(file, "pt") as tensors:
            saved |= set(tensors.keys())
    state = model.state_dict(keep_vars=True)
    held = {id(state[name]) for name in saved & state.keys()}
    absent = {
        name for name, tensor in state.items() if name not in saved and id(tensor) not in held
    }
    return {name for name in absent if any(pattern.search(name) for pattern in patterns)}


def _as_constructed(model: PreTrainedModel) -> None:
    """Restore what `from_pretrained` does not: `requires_grad`, and buffers that are not saved."""
    with torch.device("meta"):
        constructed = type(model)(model.config)
    trained = {name: p.requires_grad for name, p in constructed.named_parameters()}
    for name, parameter in model.named_parameters():
        parameter.requires_grad_(trained.get(name, parameter.requires_grad))
    if hasattr(model, "load_base"):
        return  # a `Wrapper` restores its buffers itself
    saved = model.state_dict()
    buffers = {name: buffer for name, buffer in model.named_buffers() if name not in saved}
    if buffers:
        with torch.random.fork_rng():
            computed = dict(type(model)(model.config).named_buffers())
        for name, buffer in buffers.items():
            buffer.copy_(computed[name])


def _check_weights(model: PreTrainedModel, info: dict, model_id: str) -> list[str]:
    """Return a line about new weights and a line about unused weights, if there are any.

    Raises:
        RunError: Weights other than those of the head and of a pooler are missing.
    """
    base = model.base_model
    prefix = f"{base.base_model_prefix}."
    names = [name for name, _ in base.named_parameters()]
    if not any(name.startswith(prefix) for name in names):  # no module has this name, as in T5
        prefix = ""
    head = base.get_output_embeddings() if base.can_generate() else None
    is_head = {name for name, p in base.named_parameters() if head and p is head.weight}
    missing = sorted(info["missing_keys"])
    unexpected = sorted(info["unexpected_keys"])
    body = [
        name
        for name in missing
        if name.startswith(prefix) and name not in is_head and "pooler" not in name
    ]
    if body:
        other = f"; the files contain {unexpected[0]} instead" if unexpected else ""
        raise RunError(
            f"{model_id}: {len(body)} weights of {type(base).__name__} are missing, such as "
            f"{body[0]}{other}"
        )
    return [
        f"{what}: {', '.join(names[:4])}{f' and {len(names) - 4} more' if len(names) > 4 else ''}"
        for what, names in (("new weights", missing), ("weights not used", unexpected))
        if names
    ]


def _may_have_config(task: Task, model_id: str) -> bool:
    """Return whether to read the config.json of `model_id`.

    Do not read it if `model_id` is a folder without a config.json, or if `model_id` is `BASE_MODEL`
    and not a folder: a custom Model may need no base model.
    """
    if (folder := Path(model_id)).is_dir():
        return (folder / "config.json").exists()
    return model_id != task.base_model


def _check_folder(model_id: str) -> None:
    """Check that `model_id` is an existing folder or can be a Hub id.

    Raises:
        RunError: The folder does not exist.
    """
    folder = Path(split_revision(model_id)[0])
    can_be_hub_id = not model_id.startswith((".", "/")) and len(folder.parts) <= 2
    if not folder.is_dir() and not can_be_hub_id:
        raise RunError(f"{model_id}: no such folder; expected a Hub id or a folder")


def _check_tokens(model_id: str, tokenizer: PreTrainedTokenizerBase) -> None:
    """Tokenize a probe text with the tokenizer and with tokenizer.json, and compare the tokens.

    Raises:
        RunError: transformers has built a tokenizer that differs from tokenizer.json.
    """
    if not tokenizer.is_fast:
        return
    file = find_file(model_id, "tokenizer.json", local_files_only=True)
    if file is None:
        return
    own = Tokenizer.from_file(file)
    own.no_truncation()
    own.no_padding()
    expected = own.encode(PROBE, add_special_tokens=False).ids
    if tokenizer(PROBE, add_special_tokens=False).input_ids != expected:
        raise RunError(
            f"{model_id}: {type(tokenizer).__name__} does not give the tokens of tokenizer.json; "
            "change tokenizer_class in tokenizer_config.json (PreTrainedTokenizerFast uses "
            "tokenizer.json unchanged)"
        )


def _tokenizer_reason(error: Exception) -> str:
    if "sentencepiece" in str(error).lower() and not importlib.util.find_spec("sentencepiece"):
        return "it needs the package sentencepiece: pip install -e '.[sentencepiece]'"
    return _reason(error)


def _failure(what: str, error: Exception) -> RunError:
    """Return a RunError with the message `what (reason)`.

    If the reason begins with an argument, such as `--max_len`, the message is only the reason.
    """
    reason = _reason(error)
    if "ignore_mismatched_sizes" in reason:  # refers to a report that is not printed
        reason = "some weights have other shapes than its config.json requires"
    return RunError(reason if reason.startswith("--") else f"{what} ({reason})")


def _reason(error: Exception) -> str:
    return (str(error).strip().splitlines() or [type(error).__name__])[0]
