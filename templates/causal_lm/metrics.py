"""The scores of a validation."""

import math
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
        "default": 32,
        "help": "maximum number of tokens to generate for each prompt in samples.txt; 0 for none",
    },
}
SAMPLES = 4  # maximum number of prompts in samples.txt
PROMPT = 32  # maximum number of tokens of a prompt


class Scores:
    """Perplexity (the exponential of the loss per token), and a few greedy continuations."""

    def __init__(
        self,
        model: PreTrainedModel,
        tokenizer: PreTrainedTokenizerBase,
        device: torch.device,
        *,
        max_new_tokens: int = 32,
    ):
        self.model = model
        self.max_new_tokens = max_new_tokens
        self.generates = max_new_tokens > 0
        self.decode = Decoder(tokenizer, model.generation_config)
        self.positions = getattr(model.config, "max_position_embeddings", math.inf)
        self.reset()

    @staticmethod
    def directions(schema: dict, max_new_tokens: int = 32) -> dict[str, bool]:
        """Return for each score whether larger values are better."""
        return {"perplexity": False}

    def reset(self) -> None:
        """Start a validation."""
        self.prompts: list[torch.Tensor] = []
        self.samples: list[tuple[str, str]] = []

    def update(self, outputs: Any, batch: dict[str, Any]) -> None:
        """Add a batch, and the outputs of the model for this batch."""
        missing = slice(SAMPLES - len(self.prompts))
        halves = (batch["labels"][missing] != -100).sum(1).clamp(2, 2 * PROMPT) // 2
        parts = zip(batch["input_ids"][missing], halves.tolist(), strict=True)
        self.prompts += [ids[:half] for ids, half in parts]

    def compute(self, loss: float) -> dict[str, float]:
        """Return the scores by name; `loss` is the mean over all target tokens."""
        # Continue only the longest prompts: prompts of equal length need no padding.
        length = max(map(len, self.prompts), default=0)
        room = min(self.max_new_tokens, self.positions - length)
        if length > 0 and room > 0:
            prompts = torch.stack([ids for ids in self.prompts if len(ids) == length])
            texts = generate_greedily(self.model, prompts, torch.ones_like(prompts), int(room))
            continuations = self.decode(texts[:, length:])
            self.samples = list(zip(self.decode(prompts), continuations, strict=True))
        return {"perplexity": torch.tensor(loss, dtype=torch.float64).exp().item()}

    def save(self, folder: Path) -> None:
        """Write prompts and their continuations to samples.txt."""
        lines = [f"prompt:    {prompt}\ngenerated: {text}\n" for prompt, text in self.samples]
        (folder / "samples.txt").write_text("\n".join(lines), encoding="utf-8")
