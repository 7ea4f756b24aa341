"""From prompts to their continuations: what predict.py does with a trained model."""

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
    """Continues texts.

    Args:
        max_len: Of longer texts, as many of the last tokens are seen.
        options: Of `generate`; None where not given.

    Attributes:
        columns: The one that held the text in training.
    """

    def __init__(
        self, model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, max_len: int, **options
    ):
        self.model, self.tokenizer, self.max_len = model, tokenizer, max_len
        self.options = {name: value for name, value in options.items() if value is not None}
        self.columns: list[str] = [model.config.text_column]
        # New tokens are put behind the last column, so it must not be padding.
        tokenizer.padding_side = tokenizer.truncation_side = "left"
        if tokenizer.pad_token is None:
            tokenizer.pad_token = tokenizer.eos_token

    def __call__(self, texts: list) -> list[dict]:
        """Give the `prediction` for each text: what comes next."""
        start = self.tokenizer.bos_token or self.tokenizer.eos_token  # for what has no token
        inputs = self.tokenizer(
            [text or start for text in texts],
            truncation=True,
            max_length=self.max_len,
            padding=True,
            return_tensors="pt",
        ).to(self.model.device)
        outputs = self.model.generate(
            inputs.input_ids,
            attention_mask=inputs.attention_mask,
            pad_token_id=self.tokenizer.pad_token_id,
            **self.options,
        )
        new = outputs[:, inputs.input_ids.shape[1] :]
        continuations = self.tokenizer.batch_decode(new, skip_special_tokens=True)
        return [{"prediction": text} for text in continuations]
