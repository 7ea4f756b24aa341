"""Generation by the base model of a `Wrapper`."""

from typing import Any

from torch import Tensor
from transformers import GenerationConfig, GenerationMixin

# The generation settings that `generate_greedily` keeps: those about tokens. Other settings could
# select another decoding strategy.
TOKEN_SETTINGS = (
    *("bos_token_id", "eos_token_id", "pad_token_id", "decoder_start_token_id"),
    *("forced_bos_token_id", "forced_eos_token_id", "bad_words_ids"),
    *("suppress_tokens", "begin_suppress_tokens"),
)


class WrapperGenerationMixin(GenerationMixin):
    """Delegate generation to the base model of a `Wrapper`."""

    def generate(self, *args, **kwargs):
        """Call `generate` of the base model: see `transformers.GenerationMixin.generate`."""
        base: Any = self.base_model  # type: ignore[attr-defined]
        if getattr(base.config, "output_router_logits", False):
            # The router loss of a mixture of experts cannot be computed token by token.
            kwargs["output_router_logits"] = False
        return base.generate(*args, **kwargs)


def generate_greedily(
    model: Any, input_ids: Tensor, attention_mask: Tensor, max_new_tokens: int
) -> Tensor:
    """Generate by greedy search, even if `generation_config` selects another decoding strategy.

    Returns:
        The output of `generate`, shape (batch, length): for a decoder, the prompts and the new
        tokens; for an encoder-decoder, the output of the decoder.
    """
    own = model.generation_config
    tokens = {name: getattr(own, name, None) for name in TOKEN_SETTINGS}
    model.generation_config = GenerationConfig(**tokens, do_sample=False, num_beams=1)
    try:
        return model.generate(
            input_ids, attention_mask=attention_mask, max_new_tokens=max_new_tokens
        )
    finally:
        model.generation_config = own
