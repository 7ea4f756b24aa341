"""Predict labels of texts, for predict.py."""

import torch
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from reading.tokens import fill_empty

from .dataset import OPTIONS as DATA_OPTIONS

# Arguments of Predictor that predict.py offers on its command line.
OPTIONS: dict[str, dict] = {}


class Predictor:
    """Label texts.

    Args:
        max_len: Longer texts are truncated.
        schema: Settings with which the training data were read.

    Attributes:
        columns: The columns of the text, or of the pair of texts, in the training data.
    """

    def __init__(
        self,
        model: PreTrainedModel,
        tokenizer: PreTrainedTokenizerBase,
        max_len: int,
        schema: dict,
    ):
        self.model = model
        self.tokenizer = tokenizer
        self.max_len = max_len
        tokenizer.padding_side = tokenizer.truncation_side = "right"
        defaults = {name: option.get("default") for name, option in DATA_OPTIONS.items()}
        columns = {**defaults, **schema}
        text = columns["text_column"]
        pair = columns["pair_column"]
        self.columns: list[str] = [text] if pair is None else [text, pair]

    def lengths(self, texts: list) -> list[int]:
        """Return the number of tokens of each text or pair."""
        tokens = self.tokenizer(texts, truncation=True, max_length=self.max_len)
        return [len(ids) for ids in tokens["input_ids"]]

    @torch.no_grad()
    def __call__(self, texts: list) -> list[dict]:
        """Return the `prediction` for each text or pair, and the probabilities as `scores`.

        With several labels per example, the prediction is the list of labels above 0.5; in
        regression it is a number, without scores.
        """
        tokens = self.tokenizer(texts, truncation=True, max_length=self.max_len)
        fill_empty(tokens, self.tokenizer)
        inputs = self.tokenizer.pad(tokens, return_tensors="pt").to(self.model.device)
        if len(self.columns) == 1:  # as in training: only pairs have token types
            inputs.pop("token_type_ids", None)
        logits = self.model(**inputs).logits.float()
        names = [self.model.config.id2label[index] for index in range(logits.shape[-1])]
        problem_type = self.model.config.problem_type
        if problem_type == "regression":
            return [{"prediction": value} for value in logits.squeeze(-1).tolist()]
        if problem_type == "multi_label_classification":
            rows = [dict(zip(names, row, strict=True)) for row in logits.sigmoid().tolist()]
            likely = [[name for name, score in row.items() if score > 0.5] for row in rows]
        else:
            rows = [dict(zip(names, row, strict=True)) for row in logits.softmax(-1).tolist()]
            likely = [max(row, key=row.__getitem__) for row in rows]
        return [{"prediction": p, "scores": s} for p, s in zip(likely, rows, strict=True)]
