"""A reward model: it predicts a number for a text, and is trained on numbers or preferences."""

import torch
from torch import Tensor, nn
from torch.nn.functional import logsigmoid, mse_loss
from transformers import AutoModel
from transformers.utils import ModelOutput

from .base import Wrapper
from .configuration import ModelConfig


class Model(Wrapper):
    """Any encoder, with a linear layer on the mean of its outputs."""

    config_class = ModelConfig
    auto_class = AutoModel
    base_model_prefix = "encoder"

    def __init__(self, config: ModelConfig):
        super().__init__(config)
        self.encoder = self.load_base(config)
        self.head = nn.Linear(config.hidden_size, 1)
        self.post_init()

    def score(self, input_ids: Tensor, attention_mask: Tensor) -> Tensor:
        """Return the reward of each text, shape (batch,)."""
        hidden = self.encoder(input_ids=input_ids, attention_mask=attention_mask)[0]
        mask = attention_mask[..., None]
        return self.head((hidden * mask).sum(1) / mask.sum(1)).squeeze(-1)

    def forward(
        self,
        text: dict[str, Tensor] | None = None,
        target: Tensor | None = None,
        chosen: dict[str, Tensor] | None = None,
        rejected: dict[str, Tensor] | None = None,
        num_items_in_batch: Tensor | int | None = None,
    ) -> ModelOutput:
        """Compute the rewards of texts, or the difference of the two rewards of each pair.

        Args:
            text, target: Tokens of the texts, and numbers to predict, shape (batch,). The loss is
                the squared error.
            chosen, rejected: Tokens of the better and the worse text of each pair. The loss is
                the Bradley-Terry loss.
            num_items_in_batch: Number of examples in the global batch.
        """
        errors = None
        if chosen is not None and rejected is not None:
            rewards = self.score(**chosen) - self.score(**rejected)
            errors = -logsigmoid(rewards)
        elif text is not None:
            rewards = self.score(**text)
            if target is not None:
                errors = mse_loss(rewards, target, reduction="none")
        if errors is None:
            return ModelOutput(rewards=rewards)
        items = num_items_in_batch or len(errors)
        return ModelOutput(loss=torch.sum(errors) / items, rewards=rewards)
