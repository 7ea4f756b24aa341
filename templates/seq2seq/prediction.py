"""Generate the targets of source texts, for predict.py."""

import torch
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from reading.decoding import Decoder
from reading.tokens import fill_empty, pad

from .argument_types import positive_float, positive_int
from .dataset import OPTIONS as DATA_OPTIONS

# Arguments of Predictor that predict.py offers on its command line. Generation settings that have
# neither a value on the command line nor a default here come from the checkpoint's
# generation_config.json.
OPTIONS: dict[str, dict] = {
    "max_new_tokens": {
        "type": positive_int,
        "default": 64,
        "help": "maximum number of tokens to generate",
    },
    "num_beams": {"type": positive_int, "help": "number of beams"},
    "do_sample": {
        "action": "store_const",
        "const": True,
        "help": "use sampling instead of greedy decoding",
    },
    "temperature": {"type": positive_float, "help": "sampling temperature"},
    "top_p": {"type": positive_float, "help": "cumulative probability for nucleus sampling"},
}


class Predictor:
    """Generate the target of each source.

    Args:
        max_len: Longer sources are truncated to this number of tokens.
        schema: Settings with which the training data were read.
        options: Arguments of `generate`. Those that are None are not passed.

    Attributes:
        columns: Name of the column of the sources in the training data.
        notes: A line to print if `max_new_tokens` exceeds the number of positions of the model, and
            is reduced to that number.
    """

    def __init__(
        self,
        model: PreTrainedModel,
        tokenizer: PreTrainedTokenizerBase,
        max_len: int,
        schema: dict,
        **options,
    ):
        self.model = model
        self.tokenizer = tokenizer
        self.max_len = max_len
        self.options = {name: value for name, value in options.items() if value is not None}
        default = DATA_OPTIONS["source_column"]["default"]
        self.columns: list[str] = [schema.get("source_column", default)]
        self.decode = Decoder(tokenizer, model.generation_config)
        self.notes: list[str] = []
        positions = getattr(model.config, "max_position_embeddings", None)
        if positions is not None and self.options.get("max_new_tokens", 0) > positions:
            self.options["max_new_tokens"] = positions
            self.notes.append(
                f"at most {positions} tokens are generated: the model has no more positions"
            )

    def lengths(self, texts: list) -> list[int]:
        """Return the number of tokens of each source, plus `max_new_tokens`.

        Rows of similar length are batched together. Adding `max_new_tokens` to all lengths makes
        the batches larger: generation takes most of the time, and a few large batches with padding
        are faster than many small batches with less padding.
        """
        tokens = self.tokenizer(texts, truncation=True, max_length=self.max_len)
        new = self.options.get("max_new_tokens", 0)
        return [len(ids) + new for ids in tokens["input_ids"]]

    def __call__(self, texts: list) -> list[dict]:
        """Return the `prediction` for each source."""
        tokens = self.tokenizer(texts, truncation=True, max_length=self.max_len)
        fill_empty(tokens, self.tokenizer)
        examples = [{"input_ids": torch.tensor(ids)} for ids in tokens["input_ids"]]
        # Pad as in training, since the tokenizer may have no padding token.
        input_ids, mask = pad(examples, "input_ids", self.tokenizer.pad_token_id or 0)
        outputs = self.model.generate(
            input_ids.to(self.model.device),
            attention_mask=mask.to(self.model.device),
            **self.options,
        )
        return [{"prediction": target} for target in self.decode(outputs)]
