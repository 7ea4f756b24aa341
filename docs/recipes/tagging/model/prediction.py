"""Predict tags of words, for predict.py."""

from typing import Any

import torch
from transformers import PreTrainedTokenizerBase


class Predictor:
    """Predict the tags of the words in sentences.

    A sentence is a list of words, or a text whose words are separated by spaces.
    """

    columns = ["words"]
    takes_lists = True

    def __init__(self, model: Any, tokenizer: PreTrainedTokenizerBase, max_len: int, schema: dict):
        self.model = model
        self.tokenizer = tokenizer
        self.max_len = max_len

    @torch.no_grad()
    def __call__(self, texts: list) -> list[dict]:
        sentences = [text.split() if isinstance(text, str) else text for text in texts]
        inputs = self.tokenizer(
            sentences,
            is_split_into_words=True,
            truncation=True,
            max_length=self.max_len,
            padding=True,
            return_tensors="pt",
        ).to(self.model.device)
        outputs = self.model(inputs.input_ids, inputs.attention_mask)
        found = outputs.tag_logits.argmax(-1).tolist()
        tags = self.model.config.tags
        predictions = []
        for row, sentence in enumerate(sentences):
            words = inputs.word_ids(row)
            firsts = [words.index(n) for n in range(len(sentence)) if n in words]
            predictions.append({"prediction": [tags[found[row][n]] for n in firsts]})
        return predictions
