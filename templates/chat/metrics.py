"""The scores of a validation."""

import math
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from reading.decoding import Decoder

from .generation import generate_greedily

# Arguments of Scores that train.py offers on its command line.
OPTIONS: dict[str, dict] = {
    "max_new_tokens": {
        "type": int,
        "default": 64,
        "help": "maximum number of tokens to generate for each answer in samples.txt; 0 for none",
    },
}
SAMPLES = 4  # maximum number of conversations in samples.txt


class Scores:
    """Perplexity (the exponential of the loss per target token), and a few greedy answers."""

    def __init__(
        self,
        model: PreTrainedModel,
        tokenizer: PreTrainedTokenizerBase,
        device: torch.device,
        *,
        max_new_tokens: int = 64,
    ):
        self.model = model
        self.tokenizer = tokenizer
        self.max_new_tokens = max_new_tokens
        self.generates = max_new_tokens > 0
        self.decode = Decoder(tokenizer, model.generation_config)
        self.positions = getattr(model.config, "max_position_embeddings", math.inf)
        self.reset()

    @staticmethod
    def directions(schema: dict, max_new_tokens: int = 64) -> dict[str, bool]:
        """Return for each score whether larger values are better."""
        return {"perplexity": False}

    def reset(self) -> None:
        """Start a validation."""
        self.conversations: list[tuple[torch.Tensor, torch.Tensor]] = []  # prompt, answer
        self.samples: list[tuple[str, str, str]] = []

    def update(self, outputs: Any, batch: dict[str, Any]) -> None:
        """Add a batch, and the outputs of the model for this batch."""
        for row in range(len(batch["labels"])):
            missing = SAMPLES - len(self.conversations)
            if missing == 0:
                return
            example = {name: values[row] for name, values in batch.items()}
            self.conversations += list(last_answers(example))[:missing]

    def compute(self, loss: float) -> dict[str, float]:
        """Return the scores by name; `loss` is the mean over all target tokens."""
        for prompt, answer in self.conversations if self.generates else []:
            room = int(min(self.max_new_tokens, self.positions - len(prompt)))
            if room < 1:
                continue
            ids = prompt.unsqueeze(0)
            found = generate_greedily(self.model, ids, torch.ones_like(ids), room)
            (expected,) = self.decode(answer.unsqueeze(0))
            (generated,) = self.decode(found[:, len(prompt) :])
            self.samples.append((self.tokenizer.decode(prompt), expected, generated))
        return {"perplexity": torch.tensor(loss, dtype=torch.float64).exp().item()}

    def save(self, folder: Path) -> None:
        """Write conversations, with the expected and the generated last answer, to samples.txt."""
        lines = [f"{p.rstrip()}\n  expected:  {a}\n  generated: {g}\n" for p, a, g in self.samples]
        (folder / "samples.txt").write_text("\n".join(lines), encoding="utf-8")


def last_answers(example: dict[str, torch.Tensor]) -> Iterator[tuple[torch.Tensor, torch.Tensor]]:
    """Yield the prompt and the tokens of the last answer of each conversation in an example.

    Args:
        example: Tensors of shape (length,). Each 0 in `position_ids` starts a conversation, or is
            padding.
    """
    ids = example["input_ids"]
    is_target = example["labels"] != -100
    starts = [0]
    if "position_ids" in example:
        starts = (example["position_ids"] == 0).nonzero().flatten().tolist()
    for start, stop in zip(starts, [*starts[1:], len(ids)], strict=True):
        targets = is_target[start:stop].nonzero().flatten().tolist()
        if targets:  # padding has no targets
            first = next(n for n in reversed(targets) if n - 1 not in targets)
            yield ids[start : start + first], ids[start + first : start + targets[-1] + 1]
