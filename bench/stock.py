"""Models and data of the other trainers, as in the documentation of transformers."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import transformers as hf
from datasets import Dataset, load_dataset

AUTO: dict[str, Any] = {
    "classification": hf.AutoModelForSequenceClassification,
    "seq2seq": hf.AutoModelForSeq2SeqLM,
    "causal_lm": hf.AutoModelForCausalLM,
}


class Stock:
    """The stock model, tokenizer, data and collator for a task.

    Args:
        spec: Settings of the run: `task`, `base` (a folder), `seed` and `max_len` are used.
    """

    def __init__(self, spec: dict):
        self.spec = spec
        self.task = spec["task"]
        self.tokenizer = hf.AutoTokenizer.from_pretrained(spec["base"])
        self.labels: list[str] = []

    def model(self) -> Any:
        """Load the model; if its folder has no weights, build it with random weights."""
        base, options = self.spec["base"], {}
        if self.labels:
            options["num_labels"] = len(self.labels)
        hf.set_seed(self.spec["seed"])
        if (Path(base) / "model.safetensors").exists():
            return AUTO[self.task].from_pretrained(base, **options)
        return AUTO[self.task].from_config(hf.AutoConfig.from_pretrained(base, **options))

    def collator(self, model: Any) -> Callable:
        """Return the data collator that the documentation of transformers uses for the task."""
        if self.task == "classification":
            return hf.DataCollatorWithPadding(self.tokenizer)
        if self.task == "seq2seq":
            return hf.DataCollatorForSeq2Seq(self.tokenizer, model)
        return hf.default_data_collator

    def data(self, path: str) -> Dataset:
        """Read and tokenize a file."""
        rows = load_dataset("json", data_files=path, split="train")
        if self.task == "classification" and not self.labels:
            self.labels = sorted(set(map(str, rows["label"])))
        encode = getattr(self, f"_{self.task}")
        return rows.map(encode, batched=True, remove_columns=rows.column_names)

    def _classification(self, batch: dict) -> dict:
        labels = [self.labels.index(str(label)) for label in batch["label"]]
        return {**self.tokenizer(batch["text"], **self._cut), "labels": labels}

    def _seq2seq(self, batch: dict) -> dict:
        return self.tokenizer(batch["source"], text_target=batch["target"], **self._cut)

    def _causal_lm(self, batch: dict) -> dict:
        """Concatenate texts and cut them into blocks, as run_clm.py of transformers does."""
        size = self.spec["max_len"]
        ids = sum(self.tokenizer(batch["text"])["input_ids"], [])
        blocks = [ids[i : i + size] for i in range(0, len(ids) - size + 1, size)]
        masks = [[1] * size for _ in blocks]
        return {"input_ids": blocks, "labels": blocks, "attention_mask": masks}

    @property
    def _cut(self) -> dict[str, Any]:
        return {"truncation": True, "max_length": self.spec["max_len"]}
