"""Decode generated tokens."""

import torch
from transformers import GenerationConfig, PreTrainedTokenizerBase


class Decoder:
    """Decode token ids without BOS, EOS, PAD, UNK, CLS, SEP and MASK tokens.

    Special tokens that the tokenizer adds to every text, or with which generation starts or ends,
    are also omitted: for example the language tokens of mBART. Unlike with
    `skip_special_tokens=True`, other special tokens are kept: those that a user added to the
    tokenizer are part of the texts.
    """

    def __init__(self, tokenizer: PreTrainedTokenizerBase, settings: GenerationConfig | None):
        self.tokenizer = tokenizer
        marks = {getattr(tokenizer, f"{name}_token_id") for name in ("bos", "eos", "pad", "unk")}
        marks |= {tokenizer.cls_token_id, tokenizer.sep_token_id, tokenizer.mask_token_id}
        marks |= {*tokenizer("").input_ids, *tokenizer(text_target="").input_ids}
        for name in ("decoder_start_token_id", "forced_bos_token_id", "eos_token_id"):
            value = getattr(settings, name, None)
            marks |= set(value) if isinstance(value, (list, tuple)) else {value}
        self.marks = marks & set(tokenizer.all_special_ids)

    def __call__(self, rows: torch.Tensor) -> list[str]:
        """Decode token ids, shape (batch, length)."""
        kept = ([token for token in row if token not in self.marks] for row in rows.tolist())
        return [self.tokenizer.decode(ids) for ids in kept]
