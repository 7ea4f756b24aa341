"""Count the floating-point operations of training, for the model FLOPs utilization (MFU)."""

from typing import NamedTuple

import numpy as np
from torch import nn


class Flops(NamedTuple):
    """Floating-point operations of a training step, forward and backward.

    Attributes:
        per_token: Operations per token.
        per_pair: Operations per pair of tokens of an example, for attention.
    """

    per_token: float
    per_pair: float

    def of(self, lengths: np.ndarray) -> float:
        """Return the operations for examples of the given lengths."""
        lengths = lengths.astype(np.float64)
        return self.per_token * float(lengths.sum()) + self.per_pair * float((lengths**2).sum())


def training_flops(model: nn.Module) -> Flops | None:
    """Estimate the floating-point operations of a model from its size.

    The formula is from appendix B of PaLM (Chowdhery et al., 2022,
    https://arxiv.org/abs/2204.02311): 6 N + 12 L H Q T per token, with N parameters, L layers,
    H heads of size Q, and T tokens in the sequence. Recomputed activations are not counted. N is
    the number of weights in matrix products: an embedding table counts only if it is also the
    output layer. For frozen weights, such as those of the base model of an adapter, 6 is replaced
    with 4, because no gradient is computed for them.

    Returns:
        The operations, or None if the formula does not apply. It does not apply to an
        encoder-decoder, where each token passes through only one of the two stacks, to a model with
        parameters of more than two dimensions, such as convolutions and experts, or to a model
        without matrices.
    """
    config = getattr(model, "config", None)
    if getattr(config, "is_encoder_decoder", False):
        return None
    others = (module for module in model.modules() if not isinstance(module, nn.Embedding))
    used = {id(p): p for module in others for p in module.parameters(recurse=False)}
    matrices = [p for p in used.values() if p.ndim == 2]
    if any(p.ndim > 2 for p in used.values()) or not matrices:
        return None
    per_token = sum((6 if p.requires_grad else 4) * full_size(p) for p in matrices)
    layers = getattr(config, "num_hidden_layers", None) or 0
    heads = getattr(config, "num_attention_heads", None) or 0
    size = getattr(config, "head_dim", None)
    width = heads * size if size else getattr(config, "hidden_size", None) or 0
    return Flops(per_token, 12 * layers * width)


def full_size(parameter: nn.Parameter) -> int:
    """Return the number of values over all ranks; under ZeRO-3 each rank holds only a shard."""
    return getattr(parameter, "ds_numel", parameter.numel())
