"""The model: a decoder and its loss."""

import torch
from torch import Tensor
from torch.nn import functional as F
from transformers import AutoModelForCausalLM, PreTrainedModel
from transformers.modeling_outputs import CausalLMOutputWithPast

from .configuration import ModelConfig


class Model(PreTrainedModel):
    """Any `AutoModelForCausalLM` (GPT-2, Llama, Qwen, SmolLM, ...)."""

    config_class = ModelConfig
    supports_gradient_checkpointing = True
    accepts_loss_kwargs = True  # asks transformers.Trainer for `num_items_in_batch`
    _supports_sdpa = True

    def __init__(self, config: ModelConfig):
        super().__init__(config)
        # from_pretrained builds on the meta device and fills in the checkpoint's weights itself.
        if config.base_has_weights and torch.get_default_device().type != "meta":
            self.lm = AutoModelForCausalLM.from_pretrained(
                config.base_model_id, dtype=torch.float32
            )
        else:
            self.lm = AutoModelForCausalLM.from_config(config.base_config, dtype=torch.float32)
        self.generation_config = self.lm.generation_config
        self.post_init()

    def forward(
        self,
        input_ids: Tensor | None = None,
        attention_mask: Tensor | None = None,
        labels: Tensor | None = None,
        num_items_in_batch: Tensor | int | None = None,
        **kwargs,
    ) -> CausalLMOutputWithPast:
        """Predict each token from those before it.

        Args:
            input_ids: Token ids, shape (batch, length).
            attention_mask: 1 for tokens, 0 for padding, shape (batch, length).
            labels: The ids again, shape (batch, length), -100 where nothing is to be predicted;
                the shift by one is done here, so the first column is never a target.
            num_items_in_batch: What to divide the summed loss by: the targets of the whole global
                batch. Those given here when left out, which makes the loss their mean.

        Returns:
            `loss`, a scalar if `labels` were given, and `logits`, shape (batch, length,
            vocabulary), with what the base model returns beside them.
        """
        outputs = self.lm(input_ids=input_ids, attention_mask=attention_mask, **kwargs)
        if labels is not None:
            targets = labels[:, 1:]
            if num_items_in_batch is None:
                num_items_in_batch = (targets != -100).sum()
            logits = outputs.logits[:, :-1].flatten(0, 1)
            loss = F.cross_entropy(logits, targets.flatten(), reduction="sum")
            outputs.loss = loss / num_items_in_batch
        return outputs

    def generate(self, *args, **kwargs):
        """Continue a text: see `transformers.GenerationMixin.generate`."""
        self.lm.generation_config = self.generation_config
        return self.lm.generate(*args, **kwargs)

    @classmethod
    def can_generate(cls) -> bool:
        return True


AutoModelForCausalLM.register(ModelConfig, Model, exist_ok=True)
Model.register_for_auto_class("AutoModelForCausalLM")
