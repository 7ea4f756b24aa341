"""From texts to labels: what predict.py does with a trained model."""

import torch
from transformers import PreTrainedModel, PreTrainedTokenizerBase

# Arguments of Predictor that predict.py offers on its command line.
OPTIONS: dict[str, dict] = {}


class Predictor:
    """Labels texts.

    Args:
        max_len: Longer texts are cut to this many tokens.

    Attributes:
        column: The column that held the text in training.
    """

    def __init__(self, model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, max_len: int):
        self.model, self.tokenizer, self.max_len = model, tokenizer, max_len
        self.column: str = model.config.text_column

    @torch.no_grad()
    def __call__(self, texts: list[str]) -> list[dict]:
        """Give the `prediction` for each text, and in `scores` the probability of every label."""
        inputs = self.tokenizer(
            texts, truncation=True, max_length=self.max_len, padding=True, return_tensors="pt"
        ).to(self.model.device)
        logits = self.model(inputs.input_ids, inputs.attention_mask).logits
        names = [self.model.config.id2label[index] for index in range(logits.shape[-1])]
        return [
            {"prediction": names[best], "scores": dict(zip(names, scores, strict=True))}
            for best, scores in zip(
                logits.argmax(-1).tolist(), logits.float().softmax(-1).tolist(), strict=True
            )
        ]
