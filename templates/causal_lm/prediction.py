"""Generate continuations of prompts, for predict.py."""

from collections import defaultdict

import torch
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from errors import RunError
from reading.decoding import Decoder

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
TOLERANCE = 1e-4  # relative to the largest absolute value of a logit


class Predictor:
    """Continue texts.

    Args:
        max_len: Maximum number of tokens of a prompt. Longer prompts are truncated on the left.
        schema: Settings with which the training data were read.
        options: Arguments of `generate`. Those that are None are not passed.

    Attributes:
        columns: Name of the column of the texts in the training data.
        notes: A line to print if prompts are truncated to fewer than `max_len` tokens, because the
            model has too few positions.

    Raises:
        RunError: `max_new_tokens` is at least the number of positions of the model.
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
        self.options = {name: value for name, value in options.items() if value is not None}
        self.columns: list[str] = [
            schema.get("text_column", DATA_OPTIONS["text_column"]["default"])
        ]
        self.decode = Decoder(tokenizer, model.generation_config)
        self.notes: list[str] = []
        self.room = self._room(max_len, self.options.get("max_new_tokens", 0))
        end = tokenizer.sep_token_id if tokenizer.eos_token_id is None else tokenizer.eos_token_id
        start = tokenizer.bos_token_id
        self.pad_token_id = tokenizer.pad_token_id or 0  # any token, since padding is masked
        self.default = end if start is None else start
        marks = tokenizer("").input_ids  # special tokens that the tokenizer adds to any text
        self.added_end = marks[-1:] == [end]
        self.head = len(marks) - self.added_end
        self.pads = self._ignores_padding()

    def lengths(self, texts: list) -> list[int]:
        """Return the number of tokens of each prompt, plus `max_new_tokens`.

        Rows of similar length are batched together. Adding `max_new_tokens` to all lengths makes
        the batches larger: generation takes most of the time, and a few large batches with padding
        are faster than many small batches with less padding.
        """
        new = self.options.get("max_new_tokens", 0)
        return [len(self._prompt(text)) + new for text in texts]

    def __call__(self, texts: list) -> list[dict]:
        """Return the `prediction` for each text: its continuation."""
        prompts = [self._prompt(text) for text in texts]
        together: dict[int, list[int]] = defaultdict(list)
        for index, prompt in enumerate(prompts):
            together[0 if self.pads else len(prompt)].append(index)
        predictions: dict[int, str] = {}
        for indices in together.values():
            continuations = self._continue([prompts[index] for index in indices])
            predictions.update(zip(indices, continuations, strict=True))
        return [{"prediction": predictions[index]} for index in range(len(texts))]

    def _room(self, max_len: int, max_new_tokens: int) -> int:
        """Return the maximum prompt length: `max_len`, or less to leave room for new tokens."""
        positions = getattr(self.model.config, "max_position_embeddings", None)
        room = max_len if positions is None else min(max_len, positions - max_new_tokens)
        if room < 1:
            raise RunError(
                f"--max_new_tokens {max_new_tokens}: expected less than {positions}, the number of "
                "positions of the model"
            )
        if room < max_len:
            self.notes.append(
                f"prompts are truncated to their last {room} tokens: the model has {positions} "
                f"positions, and {max_new_tokens} of them are needed for new tokens"
            )
        return room

    def _prompt(self, text: str) -> list[int]:
        """Tokenize a text as in training, but without an EOS token; truncate it on the left."""
        ids = self.tokenizer(text, verbose=False).input_ids
        ids = ids[:-1] if self.added_end else ids
        head = ids[: self.head]
        rest = ids[self.head :]
        ids = head + rest[max(0, len(ids) - self.room) :]
        return ids or [self.default]

    def _continue(self, prompts: list[list[int]]) -> list[str]:
        length = max(map(len, prompts))
        # Pad on the left, since new tokens are appended on the right.
        padded = [[self.pad_token_id] * (length - len(ids)) + ids for ids in prompts]
        masks = [[0] * (length - len(ids)) + [1] * len(ids) for ids in prompts]
        outputs = self._generate(padded, masks, **self.options)
        return self.decode(outputs[:, length:])

    def _generate(self, ids: list[list[int]], masks: list[list[int]], **options):
        return self.model.generate(
            torch.tensor(ids, device=self.model.device),
            attention_mask=torch.tensor(masks, device=self.model.device),
            pad_token_id=self.pad_token_id,
            **options,
        )

    def _ignores_padding(self) -> bool:
        """Return whether padding on the left leaves the logits of a prompt unchanged."""
        options = {"max_new_tokens": 1, "do_sample": False, "num_beams": 1}
        options |= {"output_logits": True, "return_dict_in_generate": True}
        ids = [1, 2, 1]
        pads = [self.pad_token_id] * 2
        alone = self._generate([ids], [[1, 1, 1]], **options).logits[0]
        padded = self._generate([pads + ids], [[0, 0, 1, 1, 1]], **options).logits[0]
        return bool((alone - padded).abs().max() <= TOLERANCE * alone.abs().max())
