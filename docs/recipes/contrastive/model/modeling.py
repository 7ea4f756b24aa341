"""Embeddings of texts, trained with all other positives of the global batch as negatives."""

from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor
from torch.nn.functional import cross_entropy, normalize
from torch.utils.checkpoint import checkpoint
from transformers import AutoModel
from transformers.utils import ModelOutput

from .base import Wrapper
from .configuration import ModelConfig


class Model(Wrapper):
    """Any encoder, with the normalized mean of its outputs as the embedding."""

    config_class = ModelConfig
    auto_class = AutoModel
    base_model_prefix = "encoder"
    loss_couples_examples = True

    def __init__(self, config: ModelConfig):
        super().__init__(config)
        self.encoder = self.load_base(config)
        self.post_init()

    def embed(self, input_ids: Tensor, attention_mask: Tensor) -> Tensor:
        """Return the embedding of each text, shape (batch, hidden)."""
        hidden = self.encoder(input_ids=input_ids, attention_mask=attention_mask)[0]
        return normalize((hidden * attention_mask[..., None]).sum(1), dim=-1)

    def embed_in_chunks(self, input_ids: Tensor, attention_mask: Tensor) -> Tensor:
        """Embed any number of texts, with the activations of only one chunk in memory at a time.

        The backward pass starts from the gradients with respect to all embeddings. For each chunk,
        it recomputes the embeddings and propagates their gradients to the weights.
        """
        size = self.config.chunk_size
        chunks = zip(input_ids.split(size), attention_mask.split(size), strict=True)
        return torch.cat([checkpoint(self.embed, *chunk, use_reentrant=False) for chunk in chunks])

    def forward(
        self,
        anchor: dict[str, Tensor],
        positive: dict[str, Tensor],
        key: Tensor,
        num_items_in_batch: Tensor | int | None = None,
    ) -> ModelOutput:
        """Compare this rank's anchors with the positives of all ranks.

        Args:
            key: Integers that identify the positive texts, shape (batch,). A positive with the key
                of the anchor's own positive is the same text, and not used as a negative.
            num_items_in_batch: Number of pairs in the global batch.
        """
        anchors = self.embed_in_chunks(**anchor)
        positives, start = gather(self.embed_in_chunks(**positive))
        keys, _ = gather(key)
        logits = self.config.scale * anchors @ positives.T
        own = torch.arange(start, start + len(key), device=key.device)
        is_same = key[:, None] == keys
        is_same[torch.arange(len(key)), own] = False
        logits = logits.masked_fill(is_same, -torch.inf)
        total = cross_entropy(logits, own, reduction="sum")
        return ModelOutput(loss=total / (num_items_in_batch or len(key)), anchors=anchors)


def gather(own: Tensor) -> tuple[Tensor, int]:
    """Concatenate the rows of all ranks; return them and the index of this rank's first row."""
    if not dist.is_initialized():
        return own, 0
    counts = own.new_zeros(dist.get_world_size(), dtype=torch.long)
    counts[dist.get_rank()] = len(own)
    dist.all_reduce(counts)
    start = int(counts[: dist.get_rank()].sum())
    return _Gather.apply(own, start, int(counts.sum())), start


class _Gather(torch.autograd.Function):
    """Concatenate the rows of all ranks.

    The backward pass sums the gradients of this rank's rows over all ranks.
    """

    @staticmethod
    def forward(ctx: Any, own: Tensor, start: int, total: int) -> Tensor:
        ctx.rows = slice(start, start + len(own))
        rows = own.new_zeros(total, *own.shape[1:])
        rows[ctx.rows] = own
        dist.all_reduce(rows)
        return rows

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor, None, None]:
        gradient = gradients[0].contiguous()
        dist.all_reduce(gradient)
        return gradient[ctx.rows], None, None
