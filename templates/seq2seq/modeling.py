"""The model: an encoder-decoder."""

import torch
from torch import Tensor
from transformers import AutoModelForSeq2SeqLM, PreTrainedModel
from transformers.modeling_outputs import Seq2SeqLMOutput

from .configuration import ModelConfig
from .loss import cross_entropy


class Model(PreTrainedModel):
    """Any `AutoModelForSeq2SeqLM` (T5, BART, Marian, mBART, an `EncoderDecoderModel`, ...)."""

    config_class = ModelConfig
    supports_gradient_checkpointing = True
    accepts_loss_kwargs = True  # asks transformers.Trainer for `num_items_in_batch`
    _supports_sdpa = True

    def __init__(self, config: ModelConfig):
        super().__init__(config)
        # from_pretrained builds on the meta device and fills in the checkpoint's weights itself.
        if config.base_has_weights and torch.get_default_device().type != "meta":
            self.seq2seq = AutoModelForSeq2SeqLM.from_pretrained(
                config.base_model_id, config=config.base_config, dtype=torch.float32
            )
        else:
            self.seq2seq = AutoModelForSeq2SeqLM.from_config(
                config.base_config, dtype=torch.float32
            )
        # An encoder-decoder of two encoders has a pooler that is not used, and
        # DistributedDataParallel refuses parameters that get no gradient.
        self.seq2seq.get_encoder().pooler = None
        self.generation_config = self.seq2seq.generation_config
        self.post_init()

    def forward(
        self,
        input_ids: Tensor | None = None,
        attention_mask: Tensor | None = None,
        labels: Tensor | None = None,
        num_items_in_batch: Tensor | int | None = None,
        **kwargs,
    ) -> Seq2SeqLMOutput:
        """Predict the target's tokens, each from the source and the target's tokens before it.

        Args:
            input_ids: Source token ids, shape (batch, source length).
            attention_mask: 1 for tokens, 0 for padding, shape (batch, source length).
            labels: Target token ids, shape (batch, target length); -100 is ignored.
            num_items_in_batch: What to divide the summed loss by: the target tokens of the whole
                global batch. Those given here when left out, which makes the loss their mean.

        Returns:
            `loss`, a scalar if `labels` were given, and `logits`, shape (batch, target length,
            vocabulary), with what the base model returns beside them.
        """
        if labels is not None:
            kwargs.setdefault("decoder_input_ids", self.shift_right(labels))
            kwargs.setdefault("use_cache", False)
        outputs = self.seq2seq(input_ids=input_ids, attention_mask=attention_mask, **kwargs)
        if labels is not None:
            outputs.loss = cross_entropy(outputs.logits, labels, num_items_in_batch)
        return outputs

    def shift_right(self, labels: Tensor) -> Tensor:
        """Make the decoder's inputs of its targets, as the base model was trained to see them."""
        if hasattr(self.seq2seq, "prepare_decoder_input_ids_from_labels"):
            return self.seq2seq.prepare_decoder_input_ids_from_labels(labels)
        # M2M100, NLLB and Blenderbot shift inside their forward only.
        config = self.config.base_config
        shifted = labels.roll(1, dims=1)
        shifted[:, 0] = config.decoder_start_token_id
        return shifted.masked_fill(shifted == -100, config.pad_token_id)

    def generate(self, *args, **kwargs):
        """Generate targets: see `transformers.GenerationMixin.generate`."""
        self.seq2seq.generation_config = self.generation_config
        return self.seq2seq.generate(*args, **kwargs)

    @classmethod
    def can_generate(cls) -> bool:
        return True


AutoModelForSeq2SeqLM.register(ModelConfig, Model, exist_ok=True)
Model.register_for_auto_class("AutoModelForSeq2SeqLM")
