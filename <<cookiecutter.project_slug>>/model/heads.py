"""Load a base model; keep a classification head that was trained for the labels of the data."""

import copy
from collections.abc import Callable
from typing import Any

import torch
from transformers import AutoConfig, PreTrainedConfig, PreTrainedModel

from .base import Wrapper
from .revision import split_revision


def load_classifier(
    model: Wrapper, config: Any, fits: Callable[[PreTrainedConfig, list[str], Any], bool]
) -> PreTrainedModel:
    """Load the base model of `model`; keep a head that was trained for the labels of `config`.

    If this head has the labels in another order, reorder its rows to match `config.labels`.

    Args:
        config: The configuration of `model`; it has an attribute `labels`.
        fits: Called with the configuration of the base model, the label names in this
            configuration, and `config`. Returns whether the head of the base model was trained for
            the labels of `config`.
    """
    place, hub = split_revision(str(config.base_model_id))
    saved = AutoConfig.from_pretrained(place, trust_remote_code=False, **hub)
    names = [saved.id2label[index] for index in range(saved.num_labels)]
    kind = model.auto_class.__name__.removeprefix("AutoModelFor")
    architectures = saved.architectures or []
    if not any("Classification" in name for name in architectures):
        return model.load_base(config)
    # The tensors of a head for sequences and of a head for tokens may have the same names.
    if not any(kind in name for name in architectures):
        model.notes.append(f"new head: the base model is a {architectures[0]}")
        return _load_body(model, config, saved, place, hub)
    if not fits(saved, names, config):
        model.notes.append(
            "new head: the base model has other labels or another problem_type "
            f"({', '.join(names[:8])})"
        )
        return _load_body(model, config, saved, place, hub)
    base = model.load_base(config)
    if names != config.labels and len(names) > 1:
        order = torch.tensor([names.index(name) for name in config.labels])
        for name, dim in _label_dims(model.auto_class, config).items():
            tensor = base.get_parameter(name)
            tensor.data = tensor.data.index_select(dim, order)
        model.notes.append("the rows of the base model's head are reordered to match the labels")
    return base


def _load_body(
    model: Wrapper, config: Any, saved: PreTrainedConfig, place: str, hub: dict[str, str]
) -> PreTrainedModel:
    """Load the weights of a classifier except those of its head; initialize a new head."""
    options = {"dtype": torch.float32, **config.load_options, "output_loading_info": True}
    loaded, info = model.auto_class.from_pretrained(
        place, config=saved, trust_remote_code=False, **hub, **options
    )
    new = {*_label_dims(model.auto_class, config), *info["missing_keys"]}
    body = {name: t for name, t in loaded.state_dict().items() if name not in new}
    base, found = type(loaded).from_pretrained(
        None,
        config=config.base_config,
        state_dict=body,
        **options,
    )
    model.loading_info = {**found, "unexpected_keys": info["unexpected_keys"]}
    return model.adopt(base, config)


def _label_dims(auto_class: Any, config: Any) -> dict[str, int]:
    """Find the parameters with a dimension that depends on the number of labels.

    Returns:
        The index of this dimension, by parameter name.
    """
    sizes = []
    for count in (config.num_labels, config.num_labels + 1):
        other = copy.deepcopy(config.base_config)
        other.num_labels = count
        with torch.device("meta"):
            model = auto_class.from_config(other, trust_remote_code=False)
        sizes.append({name: tensor.shape for name, tensor in model.named_parameters()})
    found = {}
    for name, shape in sizes[0].items():
        differs = [a != b for a, b in zip(shape, sizes[1][name], strict=True)]
        if any(differs):
            found[name] = differs.index(True)
    return found
