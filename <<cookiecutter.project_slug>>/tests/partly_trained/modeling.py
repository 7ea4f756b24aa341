import torch
from torch import Tensor, nn
from transformers import PreTrainedModel
from transformers.modeling_outputs import SequenceClassifierOutput

from least_contract.configuration import ModelConfig

FIRST_USE = 5  # number of forward passes in training before `expert` is used


class Model(PreTrainedModel):
    config_class = ModelConfig

    def __init__(self, config: ModelConfig):
        super().__init__(config)
        self.frozen = nn.Linear(3, 3)
        self.frozen.requires_grad_(False)
        self.unused = nn.Linear(2, 2)
        self.body = nn.Linear(3, config.size)
        self.expert = nn.Linear(config.size, config.size)
        self.head = nn.Linear(config.size, 1)
        self.register_buffer("passes", torch.zeros((), dtype=torch.int64))
        self.post_init()

    def forward(
        self, inputs: Tensor, labels: Tensor, num_items_in_batch: int | None = None
    ) -> SequenceClassifierOutput:
        hidden = torch.tanh(self.body(self.frozen(inputs)))
        if self.passes >= FIRST_USE:
            hidden = hidden + self.expert(hidden)
        if self.training:
            self.passes += 1
        logits = self.head(hidden)[:, 0]
        divisor = num_items_in_batch or len(labels)
        return SequenceClassifierOutput(loss=(logits - labels).square().sum() / divisor)
