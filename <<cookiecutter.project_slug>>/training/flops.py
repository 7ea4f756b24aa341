"""Count the floating-point operations of training, for the model FLOPs utilization (MFU)."""

from typing import NamedTuple

import numpy as np
from torch import nn


class Flops(NamedTuple):
    """Floating-point operations of a training step, forward and backward.

    Attributes:
        per_token: Those for each token.
        per_pair: Those for each pair of tokens of an example: attention.
    """

    per_token: float
    per_pair: float

    def of(self, lengths: np.ndarray) -> float:
        """Return those of examples of these lengths."""
        lengths = lengths.astype(np.float64)
        return self.per_token * float(lengths.sum()) + self.per_pair * float((lengths**2).sum())


def training_flops(model: nn.Module) -> Flops | None:
    """Estimate the operations of a model from its size.

    As in appendix B of PaLM (Chowdhery et al., 2022, https://arxiv.org/abs/2204.02311): for each
    token 6 N + 12 L H Q T, with N parameters, L layers, H heads of size Q, and T tokens in the
    sequence; recomputed activations are not counted. Here N are the weights of matrix products:
    an embedding table is left out unless it is the output layer, too. A frozen weight counts 4
    instead of 6, since it has no gradient of its own (as the base of an adapter).

    Returns:
        None where the formula does not apply: an encoder-decoder, whose tokens pass through one
        half of it; and parameters that are no matrices, such as convolutions and experts.
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
    """Number of values over all ranks; under ZeRO-3 each rank holds a part in another place."""
    return getattr(parameter, "ds_numel", parameter.numel())
