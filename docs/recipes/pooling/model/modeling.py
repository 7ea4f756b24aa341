"""Sequence classification by mean pooling."""

import torch
from torch import Tensor, nn
from transformers import AutoModel
from transformers.modeling_outputs import SequenceClassifierOutput
from transformers.utils import can_return_tuple

from .base import Wrapper
from .configuration import ModelConfig
from .loss import compute_loss


class Model(Wrapper):
    """Any `AutoModel`, with a linear layer on the mean of its last hidden states."""

    config_class = ModelConfig
    auto_class = AutoModel
    base_model_prefix = "encoder"

    def __init__(self, config: ModelConfig):
        super().__init__(config)
        self.encoder = self.load_base(config)
        self.encoder.pooler = None  # some architectures have a pooler, which is not used here
        self.dropout = nn.Dropout(getattr(config, "classifier_dropout", 0.1))
        self.classifier = nn.Linear(config.hidden_size, config.num_labels)
        self.post_init()

    @can_return_tuple
    def forward(
        self,
        input_ids: Tensor | None = None,
        attention_mask: Tensor | None = None,
        labels: Tensor | None = None,
        num_items_in_batch: Tensor | float | None = None,
        class_weights: Tensor | None = None,
        **kwargs,
    ) -> SequenceClassifierOutput:
        """Classify a batch of texts; see `compute_loss` for the labels."""
        hidden = self.encoder(input_ids=input_ids, attention_mask=attention_mask, **kwargs)[0]
        mask = torch.ones_like(hidden[..., :1])
        if attention_mask is not None:
            mask = attention_mask.unsqueeze(-1).to(hidden)
        mean = (hidden * mask).sum(dim=1) / mask.sum(dim=1)
        outputs = SequenceClassifierOutput(logits=self.classifier(self.dropout(mean)))
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


Model.register_for_auto_class("AutoModelForSequenceClassification")
