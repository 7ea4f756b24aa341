"""What validation reports beside the loss."""

import math
from functools import partial
from pathlib import Path

import torch
from transformers import PreTrainedModel, PreTrainedTokenizerBase

# Arguments of Scores that train.py offers on its command line.
OPTIONS: dict[str, dict] = {
    "max_new_tokens": {
        "type": int,
        "default": 32,
        "help": "tokens to generate for each text of samples.txt; 0: none",
    },
}
SAMPLES = 4  # of samples.txt
PROMPT = 32  # their tokens, at most


class Scores:
    """Perplexity: the exponential of the loss per token. And a few texts, continued greedily."""

    def __init__(
        self,
        model: PreTrainedModel,
        tokenizer: PreTrainedTokenizerBase,
        device: torch.device,
        *,
        max_new_tokens: int = 32,
    ):
        self.model, self.tokenizer, self.max_new_tokens = model, tokenizer, max_new_tokens
        self.generates = max_new_tokens > 0
        self.positions = getattr(model.config.base_config, "max_position_embeddings", math.inf)
        self.reset()

    @staticmethod
    def directions(schema: dict, max_new_tokens: int = 32) -> dict[str, bool]:
        """The names of the scores for data of this schema, and of each whether more is better."""
        return {"perplexity": False}

    def reset(self) -> None:
        """Begin a validation."""
        self.blocks: list[torch.Tensor] = []

    def update(self, outputs, inputs: dict[str, torch.Tensor]) -> None:
        """Take in a batch: what the model made of it, and what it was given."""
        missing = slice(SAMPLES - len(self.blocks))
        halves = (inputs["labels"][missing] != -100).sum(1).clamp(2, 2 * PROMPT) // 2
        parts = zip(inputs["input_ids"][missing], halves.tolist(), strict=True)
        self.blocks += [ids[:half] for ids, half in parts]

    def compute(self, loss: float) -> dict[str, float]:
        """Give the scores, by name; `loss` is the mean over all label items."""
        self.samples = []
        length = max(map(len, self.blocks), default=0)  # those of one length go on together
        room = min(self.max_new_tokens, self.positions - length)
        if length > 0 and room > 0:
            prompts = torch.stack([ids for ids in self.blocks if len(ids) == length])
            mask, pad_token_id = torch.ones_like(prompts), self.tokenizer.pad_token_id
            greedy = {"do_sample": False, "num_beams": 1, "pad_token_id": pad_token_id}
            texts = self.model.generate(prompts, attention_mask=mask, max_new_tokens=room, **greedy)
            decode = partial(self.tokenizer.batch_decode, skip_special_tokens=True)
            self.samples = list(zip(decode(prompts), decode(texts[:, length:]), strict=True))
        return {"perplexity": torch.tensor(loss, dtype=torch.float64).exp().item()}

    def save(self, folder: Path) -> None:
        """Write the beginnings of some blocks, and how the model goes on, into samples.txt."""
        lines = [f"prompt:    {prompt}\ngenerated: {goes_on}\n" for prompt, goes_on in self.samples]
        (folder / "samples.txt").write_text("\n".join(lines), encoding="utf-8")
