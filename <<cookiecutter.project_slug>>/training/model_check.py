"""Check a model before the first step, by running it on a few examples."""

import inspect
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from accelerate.utils import send_to_device
from torch import Tensor, nn
from transformers import PreTrainedConfig, PreTrainedTokenizerBase

from errors import RunError

from .contract import ExampleSet, model_inputs
from .user_code import user_code

TOLERANCE = 1e-4  # relative to the largest absolute value of a logit
ROWS = 2  # maximum number of examples in the batch for the checks


def check_model(
    model: nn.Module,
    tokenizer: PreTrainedTokenizerBase | None,
    examples: ExampleSet,
    max_len: int,
) -> list[str]:
    """Check that model, tokenizer and data match; align the special tokens of model and tokenizer.

    Call this on every rank, before the model is sharded. RNG states and training modes are
    restored.

    Returns:
        Lines to print, for example about settings that were changed or chosen.

    Raises:
        RunError: The shortest examples cannot be loaded; the model fails on them or on a sequence
            of `max_len` tokens; the tokenizer has more tokens than the model has embeddings, or
            lacks a token that generation needs; in a causal language model, the predictions depend
            on later tokens or on other documents; or the model lacks the router loss of its
            configuration.
    """
    notes: list[str] = []
    batch = sample_batch(examples)
    if tokenizer is not None:
        _check_vocabulary(model, tokenizer)
        notes += _align_tokens(model, tokenizer, batch)
    with probing(model):
        _run(model, batch, "the model fails on the shortest examples")
        check_length(model, max_len)
        if _is_causal(model, batch):
            _check_causality(model, batch)
            _check_documents(model, batch)
        notes += _check_router_loss(model, batch)
    if hasattr(model, "choose_form"):
        notes.append(model.choose_form(model_inputs(batch)))
    return notes


def check_length(model: nn.Module, max_len: int) -> None:
    """Check that the model can run a sequence of `max_len` tokens.

    Raises:
        RunError: The model cannot run the sequence, for example because the model has fewer than
            `max_len` positions.
    """
    embeddings = _embeddings(model)
    if embeddings is None or not _takes(model, "input_ids"):
        return
    ids = torch.full((1, max_len), min(5, embeddings.num_embeddings - 1), device=_device(model))
    eos = getattr(_config(model), "eos_token_id", None)
    if isinstance(eos, int) and eos < embeddings.num_embeddings:
        ids[:, -1] = eos  # as a classifier, BART pools the EOS token
    batch = {"input_ids": ids}
    if _takes(model, "attention_mask"):
        batch["attention_mask"] = torch.ones_like(ids)
    if getattr(_config(model), "is_encoder_decoder", False) and _can_generate(model):
        batch["labels"] = ids
    with probing(model):
        _run(model, batch, f"--max_len {max_len}: the model cannot run a sequence of that length")


def unused_parameters(model: nn.Module, batch: dict[str, Any], seed: int = 0) -> list[str]:
    """Return the names of trained parameters that get no gradient from a batch.

    The model runs in training mode. Buffers, training modes and RNG states are restored, and the
    gradients are removed.

    Args:
        seed: Seed for dropout and for randomly skipped layers.
    """
    buffers = [(buffer, buffer.clone()) for buffer in model.buffers()]
    with probing(model), torch.enable_grad():
        torch.manual_seed(seed)
        model.train()
        with user_code("model/modeling.py: the backward pass fails on a short example"):
            _run(model, batch, "the model fails on a short example").loss.backward()
        names = [n for n, p in model.named_parameters() if p.requires_grad and p.grad is None]
        model.zero_grad()
    with torch.no_grad():
        for buffer, before in buffers:
            buffer.copy_(before)
    return names


def sample_batch(examples: ExampleSet) -> dict[str, Any]:
    """Collate the shortest examples of a data set, at most `ROWS`."""
    shortest = examples.lengths.argsort(kind="stable")[:ROWS].tolist()
    with user_code("model/dataset.py: the shortest examples cannot be loaded"):
        return examples.batch(shortest)


@contextmanager
def probing(model: nn.Module) -> Iterator[None]:
    """Run the model in evaluation mode, without gradients; restore modes and RNG states at exit."""
    modes = [(module, module.training) for module in model.modules()]
    devices = [torch.accelerator.current_device_index()] if torch.accelerator.is_available() else []
    with torch.random.fork_rng(devices), torch.no_grad():
        model.eval()
        try:
            yield
        finally:
            for module, mode in modes:
                module.training = mode


def _run(model: nn.Module, batch: dict[str, Any], sentence: str):
    inputs = send_to_device(model_inputs(batch), _device(model))
    with user_code(sentence):
        return model.forward(**inputs)  # `model(**inputs)` would compile the model


def _check_vocabulary(model: nn.Module, tokenizer: PreTrainedTokenizerBase) -> None:
    embeddings = _embeddings(model)
    if embeddings is not None and len(tokenizer) > embeddings.num_embeddings:
        raise RunError(
            f"the tokenizer has {len(tokenizer):,} tokens, but the model has embeddings "
            f"for only {embeddings.num_embeddings:,}; add rows with "
            "resize_token_embeddings, and save the model"
        )


def _align_tokens(
    model: nn.Module, tokenizer: PreTrainedTokenizerBase, batch: dict[str, Any]
) -> list[str]:
    """Set stop, padding and decoder start tokens of generation to match the tokenizer and the data.

    For a model that does not generate text, only compare the padding tokens. `transformers.Trainer`
    also sets the EOS, BOS and padding tokens of a model to those of the tokenizer.
    """
    settings = getattr(model, "generation_config", None)
    if not _can_generate(model) or settings is None:
        return _check_padding(model, tokenizer)
    end = tokenizer.sep_token_id if tokenizer.eos_token_id is None else tokenizer.eos_token_id
    if end is None:
        raise RunError(
            "the tokenizer has neither eos_token nor sep_token, so generation would not stop; "
            "expected one of them"
        )
    notes: list[str] = []
    configs = [getattr(model, "base_model", model).config]
    ends = settings.eos_token_id
    ends = list(ends) if isinstance(ends, (list, tuple)) else [ends]
    if end not in ends:
        special = {*tokenizer.all_special_ids, *tokenizer.added_tokens_decoder}
        kept = [token for token in ends if token in special]
        settings.eos_token_id = [end, *kept] if kept else end
        configs[0].eos_token_id = end
        notes.append(
            f"generation stops at {tokenizer.convert_ids_to_tokens(end)!r} ({end}), the EOS "
            f"or SEP token of the tokenizer; the EOS token of the base model was {ends[0]}"
        )
    if settings.pad_token_id is None:
        settings.pad_token_id = tokenizer.pad_token_id
    if getattr(configs[0], "is_encoder_decoder", False):
        notes += _align_decoder_start(model, configs[0], tokenizer, batch)
    return notes


def _check_padding(model: nn.Module, tokenizer: PreTrainedTokenizerBase) -> list[str]:
    """Return a line if model and tokenizer have different padding tokens.

    A model that pools the last token of a text would then not recognize the padding.
    """
    config = _config(model)
    pad = getattr(config, "pad_token_id", None)
    if pad is None or tokenizer.pad_token_id in (None, pad):
        return []
    return [f"the base model's padding token is {pad}, the tokenizer's is {tokenizer.pad_token_id}"]


def _align_decoder_start(
    model: nn.Module,
    config: PreTrainedConfig,
    tokenizer: PreTrainedTokenizerBase,
    batch: dict[str, Any],
) -> list[str]:
    settings: Any = model.generation_config
    if config.pad_token_id is None:
        config.pad_token_id = tokenizer.pad_token_id
    start = getattr(config, "decoder_start_token_id", None)
    is_derived = start is None and settings.decoder_start_token_id is None
    if start is None:
        candidates = (tokenizer.bos_token_id, tokenizer.cls_token_id, tokenizer.pad_token_id)
        found = [
            token for token in (settings.decoder_start_token_id, *candidates) if token is not None
        ]
        if not found:
            raise RunError(
                "the base model has no decoder_start_token_id, and the tokenizer has no BOS, CLS "
                "or padding token; expected one of them"
            )
        config.decoder_start_token_id = found[0]
    if not hasattr(model, "shift_right") or "labels" not in batch:
        return []
    # mBART starts with the last token of the labels, whatever its decoder_start_token_id is.
    starts = model.shift_right(batch["labels"])[:, 0].unique().tolist()
    if len(starts) > 1 or starts[0] == settings.decoder_start_token_id:
        return []
    before = settings.decoder_start_token_id
    settings.decoder_start_token_id = starts[0]
    if before is None and not is_derived:
        return []
    token = tokenizer.convert_ids_to_tokens(starts[0])
    return [f"decoding starts with {token!r} ({starts[0]}), in generation as in training"]


def _is_causal(model: nn.Module, batch: dict[str, Any]) -> bool:
    is_decoder = _can_generate(model) and not getattr(_config(model), "is_encoder_decoder", False)
    return is_decoder and "input_ids" in batch and _embeddings(model) is not None


def _check_causality(model: nn.Module, batch: dict[str, Any]) -> None:
    ids = _ids(model, 12)[:1]
    other = ids.clone()
    other[0, -1] = ids[0, 0]
    sentence = "the model fails on a row of token ids without other inputs"
    logits, changed = (
        _run(model, {"input_ids": row}, sentence).logits[:, :-1] for row in (ids, other)
    )
    if _differ(logits, changed):
        name = type(getattr(model, "base_model", model)).__name__
        raise RunError(
            f"{name}: the predictions depend on later tokens; expected a causal language model "
            "(for an encoder, set is_decoder: true in config.json)"
        )


def _check_documents(model: nn.Module, batch: dict[str, Any]) -> None:
    """Check that no document attends to another document in the same row."""
    if "position_ids" not in batch or not hasattr(model, "check_documents"):
        return
    try:
        model.check_documents()
    except ValueError as error:
        raise RunError(str(error)) from None


def _check_router_loss(model: nn.Module, batch: dict[str, Any]) -> list[str]:
    config = getattr(model, "base_model", model).config if hasattr(model, "config") else None
    if not getattr(config, "output_router_logits", False):
        return []
    if _run(model, batch, "the model fails on the shortest examples").get("aux_loss") is None:
        raise RunError(
            "output_router_logits is true in config.json, but this model adds no router loss; "
            "expected false"
        )
    return ["the router loss, which depends on the size of a micro-batch, is added to the loss"]


def _ids(model: nn.Module, length: int) -> Tensor:
    """Return two rows of different token ids."""
    embeddings: Any = _embeddings(model)
    rows = torch.arange(2 * length, device=_device(model)).view(2, length)
    return (3 + rows) % embeddings.num_embeddings


def _differ(logits: Tensor, others: Tensor) -> bool:
    return bool((logits - others).abs().max() > TOLERANCE * logits.abs().max())


def _embeddings(model: nn.Module) -> nn.Embedding | None:
    try:
        found = model.get_input_embeddings()  # type: ignore[operator]
    except (AttributeError, NotImplementedError):
        return None
    return found if isinstance(found, nn.Embedding) else None


def _takes(model: nn.Module, name: str) -> bool:
    return name in inspect.signature(model.forward).parameters


def _can_generate(model: nn.Module) -> bool:
    return bool(getattr(model, "can_generate", lambda: False)())


def _config(model: nn.Module):
    return getattr(model, "config", None)


def _device(model: nn.Module) -> torch.device:
    return next(model.parameters()).device
