"""The model: an encoder-decoder."""

from torch import Tensor
from transformers import AutoModelForSeq2SeqLM
from transformers.modeling_outputs import Seq2SeqLMOutput
from transformers.utils import can_return_tuple

from .base import Wrapper
from .configuration import ModelConfig
from .generation import WrapperGenerationMixin
from .loss import cross_entropy


class Model(Wrapper, WrapperGenerationMixin):
    """A wrapper of any `AutoModelForSeq2SeqLM` (T5, BART, Marian, `EncoderDecoderModel`, ...)."""

    config_class = ModelConfig
    auto_class = AutoModelForSeq2SeqLM
    base_model_prefix = "seq2seq"

    def __init__(self, config: ModelConfig):
        super().__init__(config)
        self.seq2seq = self.load_base(config)
        self.post_init()

    @can_return_tuple
    def forward(
        self,
        input_ids: Tensor | None = None,
        attention_mask: Tensor | None = None,
        labels: Tensor | None = None,
        num_items_in_batch: Tensor | int | None = None,
        **kwargs,
    ) -> Seq2SeqLMOutput:
        """Predict each target token from the source and the target tokens before it.

        Args:
            input_ids: Source token ids, shape (batch, source length).
            attention_mask: 1 for tokens, 0 for padding, shape (batch, source length).
            labels: Target token ids, shape (batch, target length); -100 is ignored.
            num_items_in_batch: Divisor of the summed loss: the number of target tokens in the
                global batch. Default: this number in the given batch.

        Returns:
            `loss`, a scalar (None without `labels`); `logits`, shape (batch, target length,
            vocabulary); and the other outputs of the base model.
        """
        if labels is not None:
            kwargs.setdefault("decoder_input_ids", self.shift_right(labels))
            kwargs.setdefault("use_cache", False)
        outputs = self.seq2seq(input_ids=input_ids, attention_mask=attention_mask, **kwargs)
        if labels is not None:
            smoothing = self.config.label_smoothing if self.training else 0.0
            outputs.loss = cross_entropy(outputs.logits, labels, num_items_in_batch, smoothing)
        return outputs

    def shift_right(self, labels: Tensor) -> Tensor:
        """Return the decoder's inputs for these targets, shifted as the base model expects."""
        if hasattr(self.seq2seq, "prepare_decoder_input_ids_from_labels"):
            # Pass a copy, because FSMT writes into its argument.
            return self.seq2seq.prepare_decoder_input_ids_from_labels(labels.clone())
        # M2M100, NLLB and Blenderbot shift the labels only in `forward`.
        config = self.seq2seq.config
        shifted = labels.roll(1, dims=1)
        shifted[:, 0] = config.decoder_start_token_id
        return shifted.masked_fill(shifted == -100, config.pad_token_id)


Model.register_for_auto_class("AutoModelForSeq2SeqLM")
