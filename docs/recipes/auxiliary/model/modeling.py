"""A classifier with a second loss: the divergence between two passes with dropout (R-Drop)."""

import torch
from torch import Tensor
from torch.nn.functional import kl_div
from transformers import AutoModelForSequenceClassification
from transformers.utils import ModelOutput

from .base import Wrapper
from .configuration import ModelConfig
from .loss import compute_loss, count_items

WEIGHT = 0.5


class Model(Wrapper):
    """Any `AutoModelForSequenceClassification`. Checkpoints have the stock form of `Wrapper`."""

    config_class = ModelConfig
    auto_class = AutoModelForSequenceClassification
    base_model_prefix = "classifier"

    def __init__(self, config: ModelConfig):
        super().__init__(config)
        self.classifier = self.load_base(config)
        self.post_init()

    def forward(
        self,
        input_ids: Tensor,
        attention_mask: Tensor,
        labels: Tensor | None = None,
        num_items_in_batch: Tensor | float | None = None,
        class_weights: Tensor | None = None,
        **kwargs,
    ) -> ModelOutput:
        """Classify a batch of texts.

        Returns:
            With `labels`: `loss`, its parts in `losses`, which are also logged, and `logits`. The
            losses are sums over the examples, divided by `num_items_in_batch`. Otherwise: the
            output of the base model, without a loss.
        """
        inputs = {"input_ids": input_ids, "attention_mask": attention_mask, **kwargs}
        outputs = self.classifier(**inputs)
        if labels is None:
            return outputs
        items = num_items_in_batch or count_items(labels, class_weights)
        again = self.classifier(**inputs).logits if self.training else outputs.logits
        passes = (outputs.logits, again)
        kind = self.config.problem_type
        smoothing = self.config.label_smoothing if self.training else 0.0
        more = (items, class_weights, smoothing)
        parts = [compute_loss(kind, logits, labels, *more) for logits in passes]
        losses = {
            "classification": torch.stack(parts).mean(),
            "disagreement": (_divergence(*passes) + _divergence(*reversed(passes))) / items,
        }
        loss = losses["classification"] + WEIGHT * losses["disagreement"]
        return ModelOutput(loss=loss, losses=losses, logits=outputs.logits)


def _divergence(logits: Tensor, others: Tensor) -> Tensor:
    """Return KL(softmax(others) || softmax(logits)), summed over the examples."""
    found = logits.log_softmax(-1)
    return kl_div(found, others.log_softmax(-1), reduction="sum", log_target=True)
