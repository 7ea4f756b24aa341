"""The model: a token classifier, with the head of its architecture."""

import torch
from torch import Tensor
from transformers import AutoModelForTokenClassification, PreTrainedConfig
from transformers.modeling_outputs import TokenClassifierOutput
from transformers.utils import can_return_tuple

from .base import Wrapper
from .configuration import ModelConfig
from .heads import load_classifier
from .loss import cross_entropy


class Model(Wrapper):
    """A wrapper of any `AutoModelForTokenClassification` (BERT, RoBERTa, Llama, ...)."""

    config_class = ModelConfig
    auto_class = AutoModelForTokenClassification
    base_model_prefix = "tagger"

    def __init__(self, config: ModelConfig):
        super().__init__(config)
        if config.base_has_weights and torch.get_default_device().type != "meta":
            self.tagger = load_classifier(self, config, fits)
        else:
            self.tagger = self.load_base(config)
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
    ) -> TokenClassifierOutput:
        """Label the tokens of a batch of texts.

        Args:
            input_ids: Token ids, shape (batch, length).
            attention_mask: 1 for tokens, 0 for padding, shape (batch, length).
            labels: Label ids, shape (batch, length); -100 is ignored.
            num_items_in_batch: Divisor of the summed loss: the number of labelled tokens in the
                global batch or, with `class_weights`, the sum of the weights of their labels.
                Default: this number for the given batch.
            class_weights: Weight of each label in the loss, shape (labels,). Default: 1.

        Returns:
            `loss`, a scalar (None without `labels`); `logits`, shape (batch, length, labels); and
            the other outputs of the base model.
        """
        outputs = self.tagger(input_ids=input_ids, attention_mask=attention_mask, **kwargs)
        if labels is not None:
            outputs.loss = cross_entropy(
                outputs.logits,
                labels,
                num_items_in_batch,
                class_weights,
                self.config.label_smoothing if self.training else 0.0,
            )
        return outputs


def fits(saved: PreTrainedConfig, names: list[str], config: ModelConfig) -> bool:
    """Return whether a head was trained for the labels of `config`."""
    return sorted(names) == sorted(config.labels)


Model.register_for_auto_class("AutoModelForTokenClassification")
