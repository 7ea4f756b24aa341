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
        columns: Those that held the text, or the two texts, in training.
    """

    def __init__(self, model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, max_len: int):
        self.model, self.tokenizer, self.max_len = model, tokenizer, max_len
        columns = (model.config.text_column, model.config.pair_column)
        self.columns: list[str] = [name for name in columns if name is not None]

    @torch.no_grad()
    def __call__(self, texts: list) -> list[dict]:
        """Give the `prediction` for each text or pair, and in `scores` each label's probability.

        Of several labels, all that are likelier than not; in regression a number, and no scores.
        """
        inputs = self.tokenizer(
            texts, truncation=True, max_length=self.max_len, padding=True, return_tensors="pt"
        ).to(self.model.device)
        if len(self.columns) == 1:  # as in training: they tell a pair's texts apart
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
