"""From sources to targets: what predict.py does with a trained model."""

from transformers import PreTrainedModel, PreTrainedTokenizerBase

# Arguments of Predictor that predict.py offers on its command line. What is not given is as in the
# generation_config.json of the checkpoint.
OPTIONS: dict[str, dict] = {
    "max_new_tokens": {"type": int, "default": 64, "help": "most tokens to generate"},
    "num_beams": {"type": int, "help": "beams to search with"},
    "do_sample": {"action": "store_const", "const": True, "help": "draw tokens at random"},
    "temperature": {"type": float, "help": "of drawing: below 1, likely ones more often"},
    "top_p": {"type": float, "help": "of drawing: from the likeliest ones, of this much in all"},
}


class Predictor:
    """Generates the target of each source.

    Args:
        max_len: Longer sources are cut to this many tokens.
        options: Of `generate`; None where not given.

    Attributes:
        columns: The one that held the source in training.
    """

    def __init__(
        self, model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, max_len: int, **options
    ):
        self.model, self.tokenizer, self.max_len = model, tokenizer, max_len
        self.options = {name: value for name, value in options.items() if value is not None}
        self.columns: list[str] = [model.config.source_column]

    def __call__(self, texts: list) -> list[dict]:
        """Give the `prediction` for each source."""
        inputs = self.tokenizer(
            texts, truncation=True, max_length=self.max_len, padding=True, return_tensors="pt"
        ).to(self.model.device)
        outputs = self.model.generate(
            inputs.input_ids, attention_mask=inputs.attention_mask, **self.options
        )
        targets = self.tokenizer.batch_decode(outputs, skip_special_tokens=True)
        return [{"prediction": target} for target in targets]
