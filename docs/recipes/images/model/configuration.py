"""The configuration of a small convolutional network."""

from transformers import PreTrainedConfig

OPTIONS: dict[str, dict] = {
    "width": {"type": int, "default": 16, "help": "channels of the first layer"},
}


class ModelConfig(PreTrainedConfig):
    """The sizes of a convolutional network.

    Args:
        width: Number of channels of the first layer. The second layer has twice as many.
        labels: Names of the classes.
    """

    model_type = "small_cnn"
    pipeline_tag = "image-classification"

    def __init__(self, width: int = 16, labels: list[str] | None = None, **kwargs):
        super().__init__(**kwargs)
        self.width = width
        self.labels = labels or ["0", "1"]
