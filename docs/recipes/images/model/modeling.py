"""A small convolutional network with batch normalization."""

from torch import Tensor, nn
from torch.nn.functional import cross_entropy
from transformers import PreTrainedModel
from transformers.utils import ModelOutput

from .configuration import ModelConfig


class Model(PreTrainedModel):
    """Two convolutions, the mean over the image, and a linear layer."""

    config_class = ModelConfig
    loss_couples_examples = True  # because of batch normalization

    def __init__(self, config: ModelConfig):
        super().__init__(config)
        width = config.width
        self.layers = nn.Sequential(
            nn.Conv2d(1, width, 3, padding=1),
            nn.BatchNorm2d(width),
            nn.ReLU(),
            nn.Conv2d(width, 2 * width, 3, stride=2, padding=1),
            nn.BatchNorm2d(2 * width),
            nn.ReLU(),
            nn.AdaptiveAvgPool2d(1),
            nn.Flatten(),
            nn.Linear(2 * width, len(config.labels)),
        )
        self.post_init()

    def forward(self, pixels: Tensor, labels: Tensor | None = None) -> ModelOutput:
        """Classify images of shape (batch, height, width). With `labels`, compute the mean loss."""
        logits = self.layers(pixels[:, None])
        if labels is None:
            return ModelOutput(logits=logits)
        return ModelOutput(loss=cross_entropy(logits, labels), logits=logits)
