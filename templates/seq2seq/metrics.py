"""What validation reports beside the loss."""

from pathlib import Path

import sacrebleu
import torch
from accelerate.utils import gather_object
from transformers import PreTrainedModel, PreTrainedTokenizerBase

# Arguments of Scores that train.py offers on its command line.
OPTIONS: dict[str, dict] = {
    "max_new_tokens": {
        "type": int,
        "default": 64,
        "help": "most tokens to generate in validation; 0: no generation",
    },
}
SAMPLES = 10  # of samples.txt


class Scores:
    """Perplexity, and of the targets that are generated greedily: exact match, chrF and BLEU.

    All but the first are percentages. chrF and BLEU are those of sacrebleu, with its defaults.
    """

    def __init__(
        self,
        model: PreTrainedModel,
        tokenizer: PreTrainedTokenizerBase,
        device: torch.device,
        *,
        max_new_tokens: int = 64,
    ):
        self.model, self.tokenizer = model, tokenizer
        positions = getattr(model.config.base_config, "max_position_embeddings", max_new_tokens)
        self.max_new_tokens = min(max_new_tokens, positions)
        self.generates = max_new_tokens > 0
        self.reset()

    @staticmethod
    def directions(schema: dict, max_new_tokens: int = 64) -> dict[str, bool]:
        """The names of the scores for data of this schema, and of each whether more is better."""
        generated = {"exact_match": True, "chrf": True, "bleu": True}
        return {"perplexity": False, **(generated if max_new_tokens > 0 else {})}

    def reset(self) -> None:
        """Begin a validation."""
        self.texts: list[tuple[str, str, str]] = []  # source, target, what was generated

    def update(self, outputs, inputs: dict[str, torch.Tensor]) -> None:
        """Take in a batch: what the model made of it, and what it was given."""
        if self.max_new_tokens <= 0:
            return
        sources, labels = inputs["input_ids"], inputs["labels"]
        generated = self.model.generate(
            sources,
            attention_mask=inputs["attention_mask"],
            max_new_tokens=self.max_new_tokens,
            do_sample=False,
            num_beams=1,
        )
        targets = labels.masked_fill(labels == -100, self.tokenizer.pad_token_id or 0)
        parts = (
            self.tokenizer.batch_decode(ids, skip_special_tokens=True)
            for ids in (sources, targets, generated)
        )
        self.texts += zip(*parts, strict=True)

    def compute(self, loss: float) -> dict[str, float]:
        """Give the scores, by name; `loss` is the mean over all label items."""
        scores = {"perplexity": torch.tensor(loss, dtype=torch.float64).exp().item()}
        self.texts = gather_object(self.texts)
        if self.texts:
            _, targets, generated = zip(*self.texts, strict=True)
            matches = sum(t.strip() == g.strip() for t, g in zip(targets, generated, strict=True))
            scores["exact_match"] = 100 * matches / len(targets)
            scores["chrf"] = sacrebleu.corpus_chrf(generated, [targets]).score
            scores["bleu"] = sacrebleu.corpus_bleu(generated, [targets], force=True).score
        return scores

    def save(self, folder: Path) -> None:
        """Write some sources, their targets, and what was generated, into samples.txt."""
        some = self.texts[:: max(1, len(self.texts) // SAMPLES)][:SAMPLES]
        lines = [f"source:    {s}\ntarget:    {t}\ngenerated: {g}\n" for s, t, g in some]
        (folder / "samples.txt").write_text("\n".join(lines), encoding="utf-8")
