"""Find the embeddings, layers, hidden matrices and head of a model, for the optimizer."""

from collections.abc import Iterator

from torch import nn

from errors import RunError


def embedding_parameters(model: nn.Module) -> set[nn.Parameter]:
    """Return the weights of embeddings, including weights that an output layer shares."""
    kinds = (nn.Embedding, nn.EmbeddingBag)
    found = {module.weight for module in model.modules() if isinstance(module, kinds)}
    if (embedding := _layer_of(model, "get_input_embeddings")) is not None:
        found.update(embedding.parameters())
    return found


def head_parameters(model: nn.Module) -> set[nn.Parameter]:
    """Return the parameters outside the base model, and the output layer of a language model.

    In transformers, `base_model` of a model is the part without the head. For a model without
    `base_model`, return only the output layer. Weights that are shared with embeddings are not
    returned.
    """
    inside = set(_base_of(model).parameters())
    found = {parameter for parameter in model.parameters() if parameter not in inside}
    if (output := _layer_of(model, "get_output_embeddings")) is not None:
        found.update(output.parameters())
    return found - embedding_parameters(model)


def hidden_matrices(model: nn.Module) -> set[nn.Parameter]:
    """Return the trained matrices outside the embeddings and the head."""
    others = embedding_parameters(model) | head_parameters(model)
    trained = (p for p in model.parameters() if p.requires_grad and p.ndim == 2)
    return {parameter for parameter in trained if parameter not in others}


def distances_from_head(model: nn.Module) -> dict[nn.Parameter, int]:
    """Return the number of layers from the head to each parameter.

    The number is 1 for the last layer, and 0 for all parameters outside the layers and the
    embeddings, such as those of the head. For embeddings outside the layers, including all other
    parameters there with "embed" in their names, the number is that of the layers in the longest
    stack, plus 1. The layers of encoder and decoder are counted separately.
    """
    distances = dict.fromkeys(model.parameters(), 0)
    stacks = layer_stacks(model)
    deepest = 1 + max(map(len, stacks.values()), default=0)
    embeddings = embedding_parameters(model)
    for name, parameter in _base_of(model).named_parameters():
        # Other parameters with "embed" in their names are, in most models, those of norms or
        # projections after the embeddings.
        if parameter in embeddings or "embed" in name:
            distances[parameter] = deepest
    for layers in stacks.values():
        for number, layer in enumerate(layers):
            distances.update(dict.fromkeys(layer.parameters(), len(layers) - number))
    return distances


def layer_stacks(model: nn.Module) -> dict[str, nn.ModuleList]:
    """Return the outermost non-empty `nn.ModuleList`s of the base model, by name."""
    return dict(_find_stacks(_base_of(model), ""))


def learning_rate_factors(
    model: nn.Module, layer_decay: float, head_factor: float
) -> dict[nn.Parameter, float]:
    """Return the factor by which the learning rate of each parameter is multiplied.

    Args:
        layer_decay: Learning rate of each layer, as a multiple of that of the layer above.
        head_factor: Factor that multiplies the learning rate of the head.

    Raises:
        RunError: `layer_decay` is not 1 and the model has no layers, or `head_factor` is not 1 and
            the model has no head that is trained.
    """
    factors = dict.fromkeys(model.parameters(), 1.0)
    if layer_decay != 1:
        if not layer_stacks(model):
            raise RunError(
                f"--layer_decay {layer_decay}: no layers found in {type(model).__name__}; expected "
                "a model with an nn.ModuleList of layers"
            )
        distances = distances_from_head(model)
        factors = {parameter: layer_decay**count for parameter, count in distances.items()}
    if head_factor != 1:
        head = {parameter for parameter in head_parameters(model) if parameter.requires_grad}
        if not head:
            raise RunError(
                f"--head_lr_factor {head_factor}: no head found in {type(model).__name__}; "
                "expected trained parameters that are outside its base_model and not tied to the "
                "embeddings"
            )
        factors.update({parameter: head_factor * factors[parameter] for parameter in head})
    return factors


def _base_of(model: nn.Module) -> nn.Module:
    """Return the innermost `base_model`."""
    while isinstance(inner := getattr(model, "base_model", None), nn.Module) and inner is not model:
        model = inner
    return model


def _layer_of(model: nn.Module, getter: str) -> nn.Module | None:
    """Call a getter of `PreTrainedModel`; return None if the model does not implement it."""
    try:
        layer = getattr(model, getter)()
    except (AttributeError, NotImplementedError):
        return None
    return layer if isinstance(layer, nn.Module) else None


def _find_stacks(module: nn.Module, prefix: str) -> Iterator[tuple[str, nn.ModuleList]]:
    for name, child in module.named_children():
        if isinstance(child, nn.ModuleList) and len(child):
            yield f"{prefix}{name}", child
        else:
            yield from _find_stacks(child, f"{prefix}{name}.")
