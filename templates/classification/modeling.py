"""The model: an encoder, the mean of its token vectors, and a linear classifier."""

import torch
from torch import Tensor, nn
from transformers import AutoModel, AutoModelForSequenceClassification, PreTrainedModel
from transformers.modeling_outputs import SequenceClassifierOutput

from .configuration import ModelConfig
from .loss import loss_of


class Model(PreTrainedModel):
    """Any `AutoModel` body (encoder or decoder) with a classifier on top."""

    config_class = ModelConfig
    supports_gradient_checkpointing = True
    accepts_loss_kwargs = True  # asks transformers.Trainer for `num_items_in_batch`
    _supports_sdpa = True

    def __init__(self, config: ModelConfig):
        super().__init__(config)
        # from_pretrained builds on the meta device and fills in the checkpoint's weights itself.
        if config.base_has_weights and torch.get_default_device().type != "meta":
            self.encoder = AutoModel.from_pretrained(config.base_model_id, dtype=torch.float32)
        else:
            self.encoder = AutoModel.from_config(config.base_config, dtype=torch.float32)
        # Not used here, and DistributedDataParallel refuses parameters that get no gradient.
        self.encoder.pooler = None
        self.dropout = nn.Dropout(config.classifier_dropout)
        self.classifier = nn.Linear(config.base_config.hidden_size, config.num_labels)
        self.post_init()

    def forward(
        self,
        input_ids: Tensor,
        attention_mask: Tensor | None = None,
        labels: Tensor | None = None,
        num_items_in_batch: Tensor | int | None = None,
        **kwargs,
    ) -> SequenceClassifierOutput:
        """Classify a batch of texts.

        Args:
            input_ids: Token ids, shape (batch, length).
            attention_mask: 1 for tokens, 0 for padding, shape (batch, length).
            labels: See `loss_of`.
            num_items_in_batch: What to divide the summed loss by: the labels of the whole global
                batch. The labels given here when left out, which makes the loss their mean.

        Returns:
            `loss`, a scalar if `labels` were given, and `logits`, shape (batch, labels).
        """
        if attention_mask is None:
            attention_mask = torch.ones_like(input_ids)
        hidden = self.encoder(
            input_ids=input_ids, attention_mask=attention_mask, **kwargs
        ).last_hidden_state
        mask = attention_mask.unsqueeze(-1).to(hidden.dtype)
        mean = (hidden * mask).sum(dim=1) / mask.sum(dim=1)
        logits = self.classifier(self.dropout(mean))
        loss = None
        if labels is not None:
            loss = loss_of(self.config.problem_type, logits, labels, num_items_in_batch)
        return SequenceClassifierOutput(loss=loss, logits=logits)


AutoModelForSequenceClassification.register(ModelConfig, Model, exist_ok=True)
Model.register_for_auto_class("AutoModelForSequenceClassification")
