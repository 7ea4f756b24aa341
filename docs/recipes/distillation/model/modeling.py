"""A small classifier that learns the output distribution of a large one, without labels."""

import torch
from torch import Tensor
from torch.nn.functional import kl_div
from transformers import AutoModelForSequenceClassification, PreTrainedModel
from transformers.utils import ModelOutput

from .base import Wrapper
from .configuration import ModelConfig


class Model(Wrapper):
    """The student. Its checkpoints have the stock architecture, without the teacher."""

    config_class = ModelConfig
    auto_class = AutoModelForSequenceClassification
    base_model_prefix = "student"

    def __init__(self, config: ModelConfig):
        super().__init__(config)
        self.student = self.load_base(config)
        self._teacher: list[PreTrainedModel] = []
        self.post_init()

    @property
    def teacher(self) -> PreTrainedModel:
        """The teacher, loaded when it is first used.

        It is kept in a list, so that it is not a submodule: it is not trained, saved or sharded.
        """
        if not self._teacher:
            teacher = AutoModelForSequenceClassification.from_pretrained(
                self.config.teacher_id, trust_remote_code=False
            )
            self._teacher.append(teacher.to(self.device).eval())
        return self._teacher[0]

    def forward(
        self,
        input_ids: Tensor,
        attention_mask: Tensor,
        num_items_in_batch: Tensor | int | None = None,
    ) -> ModelOutput:
        """Compute the mean of KL(teacher || student) with the temperature `softness`.

        The mean is multiplied by `softness` ** 2, so that the scale of the gradient hardly depends
        on `softness`.
        """
        inputs = {"input_ids": input_ids, "attention_mask": attention_mask}
        logits = self.student(**inputs).logits
        with torch.no_grad():
            targets = self.teacher(**inputs).logits
        softness = self.config.softness
        found, expected = ((x / softness).log_softmax(-1) for x in (logits, targets))
        total = softness**2 * kl_div(found, expected, reduction="sum", log_target=True)
        return ModelOutput(loss=total / (num_items_in_batch or len(logits)), logits=logits)
