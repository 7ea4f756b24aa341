"""Predict labels of texts, for predict.py."""

from typing import Any

import torch
from transformers import PreTrainedTokenizerBase


class Predictor:
    """Predict the label of each text, without the teacher."""

    columns = ["text"]

    def __init__(self, model: Any, tokenizer: PreTrainedTokenizerBase, max_len: int, schema: dict):
        self.model = model
        self.tokenizer = tokenizer
        self.max_len = max_len

    @torch.no_grad()
    def __call__(self, texts: list[str]) -> list[dict]:
        cut = {"truncation": True, "max_length": self.max_len, "padding": True}
        inputs = self.tokenizer(texts, **cut, return_tensors="pt").to(self.model.device)
        logits = self.model.student(inputs.input_ids, inputs.attention_mask).logits
        names = self.model.config.id2label
        return [{"prediction": names[n]} for n in logits.argmax(-1).tolist()]
