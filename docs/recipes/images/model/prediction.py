"""Predict labels of images, for predict.py."""

import json
from collections.abc import Iterable
from typing import Any

import torch


class Predictor:
    """Predict the label of each image."""

    columns = ["pixels"]

    def __init__(self, model: Any, tokenizer: None, max_len: int, schema: dict):
        self.model = model

    def read(self, path: str) -> Iterable[dict]:
        """Read the rows of an input file."""
        with open(path, encoding="utf-8") as file:
            return [json.loads(line) for line in file]

    @torch.no_grad()
    def __call__(self, texts: list) -> list[dict]:
        pixels = torch.tensor(texts, device=self.model.device) / 255
        labels = self.model.config.labels
        return [{"prediction": labels[n]} for n in self.model(pixels).logits.argmax(-1)]
