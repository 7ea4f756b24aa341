"""Check that chat reads the same, unchanged texts from JSON, Parquet and saved data sets."""

import json
from pathlib import Path

import datasets

from model.dataset import Dataset, generate_dataset
from training.loading import load_tokenizer

TEXTS = ["1.0", " a\n\n b\t", '"\\u00e9" \\n é 🐿', "null", "{}", "<|x|>", "NA"]
tokenizer = load_tokenizer("tiny")


def ids_of(source: str, **options: str) -> list[list[int]]:
    dataset: Dataset = generate_dataset(source, tokenizer, 500, **options)
    return [dataset[n]["input_ids"].tolist() for n in range(len(dataset))]


def expected(messages: list[dict[str, str]]) -> list[int]:
    text = "".join(f"<|im_start|>{m['role']}\n{m['content']}<|im_end|>\n" for m in messages)
    return tokenizer(text, add_special_tokens=False).input_ids


def save(name: str, rows: list[dict]) -> list[str]:
    Path(f"{name}.jsonl").write_text("".join(json.dumps(r) + "\n" for r in rows), encoding="utf-8")
    Path(f"{name}.json").write_text(json.dumps(rows, ensure_ascii=False), encoding="utf-8")
    datasets.Dataset.from_list(rows).to_parquet(f"{name}.parquet")
    datasets.Dataset.from_list(rows).save_to_disk(f"{name}.saved")
    return [f"{name}.{ending}" for ending in ("jsonl", "json", "parquet", "saved")]


def turn(role: str, text: str) -> dict[str, str]:
    return {"role": role, "content": text}


rows = [{"messages": [turn("user", text), turn("assistant", text + "!")]} for text in TEXTS]
rows[0]["messages"].insert(0, turn("system", TEXTS[1]))
for source in save("messages", rows):
    assert ids_of(source) == [expected(row["messages"]) for row in rows], source

pairs = [{"prompt": text, "completion": text + "!"} for text in TEXTS]
whole = [[turn("user", row["prompt"]), turn("assistant", row["completion"])] for row in pairs]
for source in save("texts", pairs):
    assert ids_of(source) == list(map(expected, whole)), source
lists = [{"asked": messages[:1], "answered": messages[1:]} for messages in whole]
names = {"prompt_column": "asked", "completion_column": "answered"}
for source in save("lists", lists):
    assert ids_of(source, **names) == list(map(expected, whole)), source

# Answers in a prompt are not targets.
asked = [turn("user", "A?"), turn("assistant", "B."), turn("user", "C?")]
Path("turns.jsonl").write_text(json.dumps({"prompt": asked, "completion": "D."}))
dataset = generate_dataset("turns.jsonl", tokenizer, 500)
labels = dataset[0]["labels"]
assert tokenizer.decode(labels[labels != -100]) == "D.<|im_end|>"
