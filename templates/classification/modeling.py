"""The model: a sequence classifier with the pooling and the head of its architecture."""

import torch
from torch import Tensor
from transformers import AutoModelForSequenceClassification, PreTrainedConfig
from transformers.modeling_outputs import SequenceClassifierOutput
from transformers.utils import can_return_tuple

from .base import Wrapper
from .configuration import ModelConfig
from .heads import load_classifier
from .loss import compute_loss


class Model(Wrapper):
    """A wrapper of any `AutoModelForSequenceClassification` (BERT, RoBERTa, GPT-2, Llama, ...)."""

    config_class = ModelConfig
    auto_class = AutoModelForSequenceClassification
    base_model_prefix = "classifier"

    def __init__(self, config: ModelConfig):
        super().__init__(config)
        if hasattr(config, "classifier_dropout"):
            raise ValueError(
                "saved by an earlier version, whose model used mean pooling; expected "
                "model/modeling.py of the recipe `pooling` of the template"
            )
        if config.base_has_weights and torch.get_default_device().type != "meta":
            self.classifier = load_classifier(self, config, fits)
        else:
            self.classifier = self.load_base(config)
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
        """Classify a batch of texts.

        Args:
            input_ids: Token ids, shape (batch, length).
            attention_mask: 1 for tokens, 0 for padding, shape (batch, length).
            labels: See `compute_loss`.
            num_items_in_batch: Divisor of the summed loss: the number of labelled examples in the
                global batch or, with `class_weights`, the sum of the weights of their labels.
                Default: this number for the given batch.
            class_weights: Weight of each label in the loss, shape (labels,). Default: 1.

        Returns:
            `loss`, a scalar (None without `labels`); `logits`, shape (batch, labels); and the other
            outputs of the base model.
        """
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


def fits(saved: PreTrainedConfig, names: list[str], config: ModelConfig) -> bool:
    """Return whether a head was trained for the problem type and the labels of `config`.

    In regression, the label names are not compared.
    """
    one_value = "regression" if saved.num_labels == 1 else "single_label_classification"
    if (saved.problem_type or one_value) != config.problem_type:
        return False
    return config.problem_type == "regression" or sorted(names) == sorted(config.labels)


Model.register_for_auto_class("AutoModelForSequenceClassification")
