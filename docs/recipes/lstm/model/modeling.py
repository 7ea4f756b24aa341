"""A language model from scratch: an LSTM with tied embeddings."""

from torch import Tensor, nn
from torch.nn.functional import cross_entropy
from transformers import PreTrainedModel
from transformers.utils import ModelOutput

from .configuration import ModelConfig


class Model(PreTrainedModel):
    """An LSTM that predicts the next byte."""

    config_class = ModelConfig
    # A weight that two modules share has to be listed here; it is saved once.
    _tied_weights_keys = {"head.weight": "embeddings.weight"}

    def __init__(self, config: ModelConfig):
        super().__init__(config)
        size = config.hidden_size
        self.embeddings = nn.Embedding(config.vocab_size, size)
        self.lstm = nn.LSTM(size, size, config.num_layers, batch_first=True, dropout=config.dropout)
        self.head = nn.Linear(size, config.vocab_size, bias=False)
        self.post_init()

    def get_input_embeddings(self) -> nn.Embedding:
        return self.embeddings

    def get_output_embeddings(self) -> nn.Linear:
        return self.head

    def forward(
        self,
        input_ids: Tensor,
        labels: Tensor | None = None,
        num_items_in_batch: Tensor | int | None = None,
    ) -> ModelOutput:
        """Predict the next bytes. `labels` has shape (batch, length), with -100 for padding."""
        logits = self.head(self.lstm(self.embeddings(input_ids))[0])
        if labels is None:
            return ModelOutput(logits=logits)
        items = num_items_in_batch or (labels != -100).sum()
        total = cross_entropy(logits.flatten(0, 1), labels.flatten(), reduction="sum")
        return ModelOutput(loss=total / items, logits=logits)
