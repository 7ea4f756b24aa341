from torch import nn
from torch.nn.functional import cross_entropy
from transformers import PreTrainedModel
from transformers.utils import ModelOutput

from .configuration import ModelConfig


class Model(PreTrainedModel):
    config_class = ModelConfig

    def __init__(self, config):
        super().__init__(config)
        self.layers = nn.Sequential(nn.Linear(256, 32), nn.ReLU(), nn.Linear(32, 2))
        self.post_init()

    def forward(self, counts, labels):
        logits = self.layers(counts)
        return ModelOutput(loss=cross_entropy(logits, labels), logits=logits)
