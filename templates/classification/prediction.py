"""Predict labels of texts, for predict.py."""

from itertools import compress

import torch
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from errors import RunError
from reading.tokens import fill_empty

from .argument_types import positive_float
from .dataset import OPTIONS as DATA_OPTIONS

# Arguments of Predictor that predict.py offers on its command line.
OPTIONS: dict[str, dict] = {
    "threshold": {
        "type": positive_float,
        "help": "probability above which a label is predicted, if examples have several labels",
    },
}


class Predictor:
    """Label texts.

    Args:
        max_len: Longer texts, or pairs of texts, are truncated to this number of tokens.
        schema: Settings with which the training data were read.
        threshold: Probability above which a label is predicted, if an example can have several
            labels: one number for all labels, or a dict from label names to numbers. Default: 0.5.

    Attributes:
        columns: Name of the column of the texts in the training data, or names of the two columns
            of the pairs of texts.
        notes: A line with the thresholds, if `threshold` is a dict.

    Raises:
        RunError: `threshold` is a number that is not between 0 and 1, or is given for a model that
            does not predict several labels per example.
    """

    def __init__(
        self,
        model: PreTrainedModel,
        tokenizer: PreTrainedTokenizerBase,
        max_len: int,
        schema: dict,
        *,
        threshold: float | dict[str, float] | None = None,
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
        self.notes: list[str] = []
        self._set_thresholds(threshold)

    def _set_thresholds(self, threshold: float | dict[str, float] | None) -> None:
        kind = self.model.config.problem_type
        if threshold is not None and kind != "multi_label_classification":
            raise RunError(
                f"--threshold: the model is for {kind}; expected multi_label_classification"
            )
        if isinstance(threshold, float) and not 0 < threshold < 1:
            raise RunError(f"--threshold {threshold}: expected more than 0 and less than 1")
        config = self.model.config
        names = [config.id2label[index] for index in range(config.num_labels)]
        if isinstance(threshold, dict):
            chosen = ", ".join(f"{name} {threshold[name]}" for name in names)
            self.notes.append(f"thresholds chosen on the validation data: {chosen}")
            self.thresholds = torch.tensor([threshold[name] for name in names])
        else:
            self.thresholds = torch.full((len(names),), threshold or 0.5)

    def lengths(self, texts: list) -> list[int]:
        """Return the number of tokens of each text or pair."""
        tokens = self.tokenizer(texts, truncation=True, max_length=self.max_len)
        return [len(ids) for ids in tokens["input_ids"]]

    @torch.no_grad()
    def __call__(self, texts: list) -> list[dict]:
        """Return the `prediction` for each text or pair, and the probabilities as `scores`.

        With several labels per example, the prediction is the list of labels whose probability is
        above their threshold. In regression, the prediction is a number, and there are no `scores`.
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
            scores = logits.sigmoid()
            rows = [dict(zip(names, row, strict=True)) for row in scores.tolist()]
            above = (scores > self.thresholds.to(scores.device)).tolist()
            likely = [list(compress(names, row)) for row in above]
        else:
            rows = [dict(zip(names, row, strict=True)) for row in logits.softmax(-1).tolist()]
            likely = [max(row, key=row.__getitem__) for row in rows]
        return [{"prediction": p, "scores": s} for p, s in zip(likely, rows, strict=True)]
