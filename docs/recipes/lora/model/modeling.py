"""A classifier with a frozen body: only the head and the LoRA matrices are trained."""

import math

import torch
from torch import Tensor, nn
from transformers import AutoModelForSequenceClassification
from transformers.utils import ModelOutput

from .base import Wrapper
from .configuration import ModelConfig
from .loss import compute_loss

RANK = 4  # if 0, no matrices are added: only the head is trained
ALPHA = 8.0


class LoRA(nn.Module):
    """A frozen linear layer plus the product of two small matrices."""

    def __init__(self, linear: nn.Linear, rank: int, alpha: float):
        super().__init__()
        self.linear = linear
        self.down = nn.Parameter(torch.empty(rank, linear.in_features))
        self.up = nn.Parameter(torch.zeros(linear.out_features, rank))  # the product is 0 at first
        self.scale = alpha / rank
        nn.init.kaiming_uniform_(self.down, a=math.sqrt(5))

    def forward(self, hidden: Tensor) -> Tensor:
        return self.linear(hidden) + self.scale * hidden @ self.down.T @ self.up.T


class Model(Wrapper):
    """Any `AutoModelForSequenceClassification` with LoRA in the linear layers of its body."""

    config_class = ModelConfig
    auto_class = AutoModelForSequenceClassification
    base_model_prefix = "classifier"

    def __init__(self, config: ModelConfig):
        super().__init__(config)
        self.classifier = self.load_base(config)
        body = self.classifier.base_model
        body.requires_grad_(False)
        if RANK:
            add_lora(body)
        self.post_init()

    def _init_weights(self, module: nn.Module) -> None:
        """Do nothing: the constructors initialize all weights that are not loaded."""

    def forward(
        self,
        input_ids: Tensor,
        attention_mask: Tensor | None = None,
        labels: Tensor | None = None,
        num_items_in_batch: Tensor | float | None = None,
        class_weights: Tensor | None = None,
        **kwargs,
    ) -> ModelOutput:
        """Classify a batch of texts; see `compute_loss` for the labels."""
        outputs = self.classifier(input_ids=input_ids, attention_mask=attention_mask, **kwargs)
        if labels is not None:
            outputs.loss = compute_loss(
                self.config.problem_type,
                outputs.logits,
                labels,
                num_items_in_batch,
                class_weights,
                self.config.label_smoothing if self.training else 0.0,
            )
        return outputs


def add_lora(body: nn.Module) -> None:
    """Replace each linear layer by a `LoRA` layer."""
    for module in list(body.modules()):
        for name, child in list(module.named_children()):
            if isinstance(child, nn.Linear):
                setattr(module, name, LoRA(child, RANK, ALPHA))
