"""Small data for each recipe. The data are the same in every run."""

from __future__ import annotations

import json
import random
from collections.abc import Callable
from pathlib import Path
from typing import Any

Row = dict[str, Any]
WORDS = [
    "the",
    "cat",
    "sat",
    "on",
    "a",
    "mat",
    "and",
    "saw",
    "the",
    "dog",
    "run",
    "to",
    "its",
    "red",
    "house",
]


def sentence(rng: random.Random) -> list[str]:
    return rng.choices(WORDS, k=rng.randint(3, 12))


def labelled(rng: random.Random) -> Row:
    words = sentence(rng)
    return {"text": " ".join(words), "label": "spam" if "dog" in words else "ham"}


def tagged(rng: random.Random) -> Row:
    words = sentence(rng)
    tags = ["KEEP" if word != "its" else rng.choice(["DELETE", "REPLACE"]) for word in words]
    return {"words": words, "tags": tags}


def preferred(rng: random.Random) -> Row:
    text = " ".join(sentence(rng))
    return {"chosen": text, "rejected": f"{text} dog", "text": text, "target": len(text) / 10}


def paired(rng: random.Random) -> Row:
    words = sentence(rng)
    return {"anchor": " ".join(words), "positive": " ".join(sorted(words)), "text": words[0]}


def picture(rng: random.Random) -> Row:
    label = rng.choice(["dark", "light"])
    pixels = [[rng.randint(0, 127) + 128 * (label == "light") for _ in range(8)] for _ in range(8)]
    return {"pixels": pixels, "label": label}


ROWS: dict[str, Callable[[random.Random], Row]] = {
    "least": labelled,
    "tagging": tagged,
    "reward": preferred,
    "contrastive": paired,
    "images": picture,
    "lstm": labelled,
    "distillation": labelled,
    "lora": labelled,
    "auxiliary": labelled,
    "optimizer": labelled,
    "pooling": labelled,
    "head": labelled,
}


def write_rows(recipe: str, folder: Path) -> None:
    """Write train.jsonl and valid.jsonl."""
    rng = random.Random(0)
    for name, count in (("train", 36), ("valid", 14)):
        rows = [ROWS[recipe](rng) for _ in range(count)]
        lines = "".join(json.dumps(row) + "\n" for row in rows)
        (folder / f"{name}.jsonl").write_text(lines, encoding="utf-8")
