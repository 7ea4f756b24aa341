"""The configuration of an LSTM language model."""

from transformers import PreTrainedConfig

OPTIONS: dict[str, dict] = {
    "hidden_size": {"type": int, "default": 32, "help": "width of the layers"},
    "num_layers": {"type": int, "default": 2, "help": "number of layers"},
}


class ModelConfig(PreTrainedConfig):
    """An LSTM over the bytes of a text.

    Args:
        hidden_size: Width of the embeddings and of the layers.
        num_layers: Number of layers.
        dropout: Dropout between the layers.
    """

    model_type = "lstm_lm"

    def __init__(self, hidden_size: int = 32, num_layers: int = 2, dropout: float = 0.1, **kwargs):
        super().__init__(**{"tie_word_embeddings": True, **kwargs})
        self.hidden_size = hidden_size
        self.num_layers = num_layers
        self.dropout = dropout
        self.vocab_size = 258  # bytes, end of text, padding
