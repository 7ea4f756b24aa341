"""A tagger with two heads: one detects wrong words, the other predicts the tag of each word."""

from torch import Tensor, nn
from torch.nn.functional import cross_entropy
from transformers import AutoModel
from transformers.utils import ModelOutput

from .base import Wrapper
from .configuration import ModelConfig


class Model(Wrapper):
    """Any encoder, with two linear layers: detection and tags."""

    config_class = ModelConfig
    auto_class = AutoModel
    base_model_prefix = "encoder"

    def __init__(self, config: ModelConfig):
        super().__init__(config)
        self.encoder = self.load_base(config)
        self.detect = nn.Linear(config.hidden_size, 2)
        self.tag = nn.Linear(config.hidden_size, len(config.tags))
        self.post_init()

    def forward(
        self,
        input_ids: Tensor,
        attention_mask: Tensor,
        labels: Tensor | None = None,
        num_items_in_batch: Tensor | int | None = None,
    ) -> ModelOutput:
        """Compute the logits of both heads for each token.

        Args:
            labels: Index of the word's tag at the first token of each word, -100 at all other
                tokens, shape (batch, length).
            num_items_in_batch: Number of words in the global batch.

        Returns:
            Logits of shape (batch, length, 2) and (batch, length, tags). With `labels`, also
            `loss`, and its parts in `losses`.
        """
        hidden = self.encoder(input_ids=input_ids, attention_mask=attention_mask)[0]
        outputs = ModelOutput(detect_logits=self.detect(hidden), tag_logits=self.tag(hidden))
        if labels is None:
            return outputs
        is_wrong = labels.clamp(max=1)  # -100 is unchanged
        items = num_items_in_batch or (labels != -100).sum()
        losses = {
            "detection": _summed(outputs.detect_logits, is_wrong) / items,
            "tagging": _summed(outputs.tag_logits, labels) / items,
        }
        return ModelOutput(loss=sum(losses.values()), losses=losses, **outputs)


def _summed(logits: Tensor, labels: Tensor) -> Tensor:
    return cross_entropy(logits.flatten(0, 1), labels.flatten(), reduction="sum")
