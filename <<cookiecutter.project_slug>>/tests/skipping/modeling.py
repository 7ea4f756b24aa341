import torch
from torch import Tensor
from transformers.modeling_outputs import SequenceClassifierOutput

from least_contract.modeling import Model as Least

LAST_USE = 12  # number (1-based) of the first forward pass in training that does not use the body


class Model(Least):
    def __init__(self, config):
        super().__init__(config)
        self.register_buffer("passes", torch.zeros((), dtype=torch.int64))

    def uses_body(self) -> bool:
        return int(self.passes) < LAST_USE

    def forward(self, inputs: Tensor, labels: Tensor | None = None) -> SequenceClassifierOutput:
        if self.training:
            self.passes += 1
        if self.uses_body():
            return super().forward(inputs, labels)
        logits = self.head(torch.ones(len(inputs), self.head.in_features))[:, 0]
        return SequenceClassifierOutput(loss=(logits - labels).square().mean(), logits=logits)
