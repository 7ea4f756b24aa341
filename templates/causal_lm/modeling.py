"""The model: a decoder."""

import inspect

import torch
from torch import Tensor, nn
from transformers import AutoModelForCausalLM, PreTrainedModel
from transformers.modeling_outputs import CausalLMOutputWithPast

from .configuration import ModelConfig
from .loss import LinearHead, cross_entropy


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
        positions = inspect.signature(self.lm.forward).parameters.get("position_ids")
        if getattr(config, "separate_documents", False) and positions is None:
            name = type(self.lm).__name__
            raise ValueError(f"separate_documents: {name} takes no position_ids")
        if torch.get_default_device().type != "meta":
            config.has_linear_head = self._has_linear_head()
        if config.has_linear_head:
            self.lm.get_output_embeddings().__class__ = LinearHead
        self.generation_config = self.lm.generation_config
        self.post_init()

    def forward(
        self,
        input_ids: Tensor | None = None,
        attention_mask: Tensor | None = None,
        labels: Tensor | None = None,
        num_items_in_batch: Tensor | int | None = None,
        return_logits: bool = False,
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
            return_logits: Whether to make the logits of a labelled batch as well.

        Returns:
            `loss`, a scalar if `labels` were given, and `logits`, shape (batch, length,
            vocabulary), with what the base model returns beside them. Of labelled batches the
            loss alone, where the head allows it: the logits of all tokens would fill the memory.
        """
        kwargs.update(input_ids=input_ids, attention_mask=attention_mask)
        if labels is None:
            return self.lm(**kwargs)
        kwargs.setdefault("use_cache", False)  # with one, documents would see one another
        if self.config.has_linear_head and not return_logits:
            hidden = self.lm.base_model(**kwargs).last_hidden_state
            loss = self.lm.get_output_embeddings()(hidden, labels, num_items_in_batch)
            return CausalLMOutputWithPast(loss=loss)
        outputs = self.lm(**kwargs)
        outputs.loss = cross_entropy(outputs.logits, labels, num_items_in_batch)
        return outputs

    @torch.no_grad()
    def _has_linear_head(self) -> bool:
        """Whether the head alone makes the logits: no soft cap, no scale, no layer between."""
        was_training = self.lm.training
        ids, head = torch.tensor([[1, 2]]), self.lm.eval().get_output_embeddings()
        hidden = getattr(self.lm.base_model(input_ids=ids), "last_hidden_state", None)
        is_linear = (
            type(head) is nn.Linear
            and hidden is not None
            and hidden.shape[-1] == head.in_features
            # Bit for bit: of small logits, a soft cap leaves nearly what they were.
            and torch.equal(self.lm(input_ids=ids).logits, head(hidden))
        )
        self.lm.train(was_training)
        return is_linear

    def generate(self, *args, **kwargs):
        """Continue a text: see `transformers.GenerationMixin.generate`."""
        self.lm.generation_config = self.generation_config
        return self.lm.generate(*args, **kwargs)

    @classmethod
    def can_generate(cls) -> bool:
        return True


AutoModelForCausalLM.register(ModelConfig, Model, exist_ok=True)
Model.register_for_auto_class("AutoModelForCausalLM")
