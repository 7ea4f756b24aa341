"""Check the labels of tokens, the windows and the scores of the task token_classification.

python entities.py FOLDER
"""

import json
import random
import sys
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import torch
from transformers import AutoTokenizer

from model.dataset import generate_dataset
from model.metrics import Scores
from reading.entities import entities_of, to_bio

FOLDER = Path(sys.argv[1])
# The scores that seqeval returns for the random labels below.
SEQEVAL = {
    "f1": 0.18414322250639384,
    "precision": 0.18556701030927836,
    "recall": 0.18274111675126903,
    "accuracy": 0.16833333333333333,
}
TOKENIZER = AutoTokenizer.from_pretrained("tiny")


def read(name: str, *rows: dict, max_len: int = 128) -> Any:
    text = "".join(json.dumps(row) + "\n" for row in rows)
    (FOLDER / name).write_text(text, encoding="utf-8")
    return generate_dataset(FOLDER / name, TOKENIZER, max_len)


def labels_of(dataset: Any) -> list[list[str]]:
    names = dataset.schema["labels"]
    return [[names[i] if i >= 0 else "-" for i in row["labels"].tolist()] for row in dataset]


def first_tokens_have_the_labels_of_words() -> None:
    dataset = read("words.jsonl", {"words": ["Qxzq", "", "Lorn"], "labels": ["B-X", "O", "O"]})
    (found,) = labels_of(dataset)
    tokens = [TOKENIZER.decode(token) for token in dataset[0]["input_ids"]]
    starts = [n for n, label in enumerate(found) if label != "-"]
    assert [found[n] for n in starts] == ["B-X", "O"]
    assert tokens[starts[0]].startswith("Q") and tokens[starts[1]].startswith(" L")
    assert starts[1] - starts[0] > 1  # the first word has several tokens
    assert dataset.num_items.tolist() == [2]


def entities_by_characters_label_all_tokens() -> None:
    text = "😀 Zoë 12 Rd., x"
    spans = [{"start": 2, "end": 5, "label": "A"}, {"start": 9, "end": 11, "label": "B"}]
    dataset = read("text.jsonl", {"text": text, "entities": spans})
    (found,) = labels_of(dataset)
    offsets = TOKENIZER(text, return_offsets_mapping=True)["offset_mapping"]
    for (start, end), label in list(zip(offsets, found, strict=True))[1:-1]:
        expected = next((s["label"] for s in spans if s["start"] <= start and end <= s["end"]), "")
        assert start == end or label[2:] == expected, (start, end, label)
    assert [label for label in found if label[0] == "B"] == ["B-A", "B-B"]
    assert not dataset.notes


def labels_are_converted_and_entities_widened_with_a_note() -> None:
    assert to_bio(["I-A", "I-A", "O", "I-B", "B-B"]) == ["B-A", "I-A", "O", "B-B", "B-B"]
    bilou, bio = "B-A L-A U-B S-A I-A E-A", "B-A I-A B-B B-A I-A I-A"
    assert to_bio(bilou.split()) == bio.split()
    dataset = read("iob1.jsonl", {"words": "a b", "labels": "I-X I-X"})
    assert labels_of(dataset)[0].count("B-X") == 1
    place = f"first {FOLDER}/iob1.jsonl:1"
    assert [n.startswith("1 rows") and n.endswith(place) for n in dataset.notes] == [True]
    dataset = read("cut.jsonl", {"text": "the StreetName", "spans": [[5, 14, "X"], [3, 4, "Y"]]})
    assert any("widened" in note for note in dataset.notes)
    assert any("without a token" in note for note in dataset.notes)


def windows_label_each_token_once() -> None:
    whole = generate_dataset("data/valid.jsonl", TOKENIZER, 128)
    for max_len in (9, 16, 24):
        parts = generate_dataset("data/valid.jsonl", TOKENIZER, max_len)
        assert len(parts) > len(whole)
        assert parts.lengths.max() <= max_len
        assert parts.num_items.sum() == whole.num_items.sum()
        assert f"have {len(parts):,} windows" in parts.notes[0]
        counts = [
            sum(label[0] == "B" for row in labels_of(d) for label in row) for d in (whole, parts)
        ]
        assert counts[0] == counts[1]
        assert len(set(parts.checksums)) <= len(whole)  # checksums are of texts, not of windows


def random_labels(draw: random.Random, kinds: list[str]) -> list[str]:
    return draw.choices(["O", *(f"{prefix}-{kind}" for kind in kinds for prefix in "BI")], k=12)


def scores_are_those_of_seqeval() -> None:
    """Compare entities and scores with those returned by seqeval 1.2.2."""
    for names, expected in (
        ("B-LOC I-LOC O B-LOC B-LOC", [(0, 2, "LOC"), (3, 4, "LOC"), (4, 5, "LOC")]),
        ("I-PER I-LOC O I-LOC", [(0, 1, "PER"), (1, 2, "LOC"), (3, 4, "LOC")]),
        ("B-PER I-LOC I-LOC B-PER", [(0, 1, "PER"), (1, 3, "LOC"), (3, 4, "PER")]),
    ):
        assert entities_of(names.split()) == expected
    draw = random.Random(0)
    kinds = ["PER", "LOC"]
    labels = ["O", "B-PER", "I-PER", "B-LOC", "I-LOC"]
    rows = [(random_labels(draw, kinds), random_labels(draw, kinds)) for _ in range(50)]
    config = SimpleNamespace(num_labels=len(labels), id2label=dict(enumerate(labels)))
    scores = Scores(SimpleNamespace(config=config), TOKENIZER, torch.device("cpu"))
    scores.reset()
    for true, guessed in rows:
        ids = [torch.tensor([[labels.index(name) for name in part]]) for part in (true, guessed)]
        logits = torch.nn.functional.one_hot(ids[1], len(labels)).float()
        scores.update(SimpleNamespace(logits=logits), {"labels": ids[0]})
    found = scores.compute(0.0)
    for name, value in SEQEVAL.items():
        assert abs(found[name] - value) < 1e-12, (name, found)


if __name__ == "__main__":
    first_tokens_have_the_labels_of_words()
    entities_by_characters_label_all_tokens()
    labels_are_converted_and_entities_widened_with_a_note()
    windows_label_each_token_once()
    scores_are_those_of_seqeval()
