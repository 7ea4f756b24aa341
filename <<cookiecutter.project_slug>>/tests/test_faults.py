"""`--dry_run` counts rows that may be wrong, and prints the line number of the first one."""

import json
from dataclasses import replace
from types import SimpleNamespace

import datasets
import numpy as np
import pytest

import train
from reading.faults import Rows, repeats
from training.contract import ExampleSet


@pytest.fixture
def rows_of(tmp_path):
    """Return a function that writes texts to a file, and returns its `Rows` with given tokens."""

    def make(texts: list[str], tokens: list[list[int]]) -> Rows:
        source = tmp_path / "rows.jsonl"
        lines = (json.dumps({"text": text}) + "\n" for text in texts)
        source.write_text("\n".join(lines), encoding="utf-8")  # every second line is empty
        text_table = datasets.Dataset.from_dict({"text": texts})
        return Rows(str(source), text_table, datasets.Dataset.from_dict({"ids": tokens}))

    return make


def places(lines) -> list[str]:
    """In each line, replace the path of the file at the end with the name of the file."""
    return [f"{line[: line.rindex(' ')]} {line.rpartition('/')[2]}".strip() for line in lines]


def test_empty_texts_are_found(rows_of):
    rows = rows_of(["a", "", " b ", " \n\u3000"], [[1]] * 4)
    assert places(rows.empty("text")) == ["empty 'text': 2, first rows.jsonl:3"]
    assert places(rows_of(["a"], [[1]]).empty("text")) == []


def test_special_tokens_that_begin_or_end_a_sequence_twice_are_found(rows_of):
    names = {7: "<s>", 8: "</s>"}
    tokenizer = SimpleNamespace(
        bos_token_id=7,
        cls_token_id=7,
        eos_token_id=8,
        sep_token_id=None,
        convert_ids_to_tokens=names.__getitem__,
    )
    tokens = [[7, 1, 8], [7, 7, 1, 8], [7], [], [7, 1, 8, 8], [7, 7, 8, 8]]
    rows = rows_of(["a"] * 6, tokens)
    assert places(rows.doubled("ids", tokenizer)) == [  # type: ignore[arg-type]
        "ids that begin with <s> twice: 2, first rows.jsonl:3",
        "ids that end with </s> twice: 2, first rows.jsonl:9",
    ]


def test_truncated_tokens_are_counted(rows_of):
    rows = rows_of(["one two", "one two three", "a b c d e f", "a b"], [[1]] * 4)

    def encode(batch: dict) -> list[list]:
        return [text.split() for text in batch["text"]]

    lines = rows.cut("texts", np.array([0, 1, 2, 3]), 2, encode)
    expected = "texts cut to --max_len 2: 2 of 4 (by 1 to 4 tokens, 5 in all), first rows.jsonl:3"
    assert places(lines) == [expected]
    assert places(rows.cut("texts", np.array([0, 3]), 2, encode)) == []
    assert places(rows.cut("texts", np.array([], dtype=int), 2, encode)) == []


def test_labels_that_occur_once_are_listed(rows_of):
    rows = rows_of(["a"] * 4, [[1]] * 4)
    lines = rows.single_labels(["x", "y", "z"], np.array([0, 2, 0, 1]), np.arange(4))
    assert places(lines) == ["labels that occur once (y, z): 2, first rows.jsonl:3"]


def test_equal_texts_with_other_labels_are_found(rows_of):
    rows = rows_of(["a"] * 5, [[1, 2], [1], [1, 2], [2], [1, 2]])
    lines = rows.contradictory("ids", np.array([5, 6, 7, 8, 5]))
    what = "equal to an earlier row after tokenization, but with other labels"
    assert places(lines) == [f"{what}: 1, first rows.jsonl:5"]
    assert places(rows.contradictory("ids", np.array([5, 6, 5, 8, 5]))) == []


def test_row_with_several_sequences_is_counted_once(rows_of):
    rows = replace(rows_of(["a"] * 3, [[1]] * 6), row_of=np.array([0, 0, 1, 1, 2, 2]))
    what = "equal to an earlier row after tokenization"
    lines = rows.repeated(np.array([5, 6, 5, 6, 7, 8]), None)
    assert places(lines) == [f"{what}: 1, first rows.jsonl:3"]


def test_repeats_returns_all_occurrences_but_the_first():
    assert repeats(np.array([5, 3, 5, 4, 3, 5])).tolist() == [2, 4, 5]


def test_equal_examples_are_found_in_a_data_set_that_has_only_checksums():
    class Data:
        def __init__(self, checksums: list[int]):
            self.checksums = checksums

        def __len__(self) -> int:
            return len(self.checksums)

        def __getitem__(self, index: int) -> dict:
            return {"value": index}

    whole = ExampleSet(Data([1, 2, 1]))
    assert list(whole.faults()) == ["  equal to an earlier example: 1, first example 2 (0-based)"]
    assert list(ExampleSet(Data([4, 2])).faults(whole)) == [
        "  also in the training data: 1, first example 1 (0-based)"
    ]


def test_dry_run_finds_equal_and_empty_rows(arguments, sample, tmp_path, capsys):
    rows: dict[str, list] = {}
    for name in ("train", "valid"):
        lines = (sample / f"{name}.jsonl").read_text(encoding="utf-8").splitlines()
        rows[name] = [json.loads(line) for line in dict.fromkeys(lines)]
    # Remove equal rows. The equal rows for this test are added below.
    rows["valid"] = [row for row in rows["valid"] if row not in rows["train"]]
    column = next(iter(rows["train"][0]))
    has_texts = isinstance(rows["train"][0][column], str)
    rows["train"].append(rows["train"][3])
    if has_texts:  # an empty text must not have entities
        first = {k: [] if isinstance(v, list) else v for k, v in rows["train"][0].items()}
        rows["train"].append({**first, column: " "})
    rows["valid"] += [rows["train"][5]]
    for name in rows:
        text = "".join(json.dumps(row) + "\n" for row in rows[name])
        (tmp_path / f"{name}.jsonl").write_text(text, encoding="utf-8")
        arguments += [f"--{name}_input", str(tmp_path / f"{name}.jsonl")]
    train.main([*arguments, "--dry_run"])
    shown = capsys.readouterr().out
    last = len(rows["train"])
    equal = last - has_texts
    assert (
        f"  equal to an earlier row after tokenization: 1, first {tmp_path}/train.jsonl:{equal}"
        in shown
    )
    empty = f"  empty {column!r}: 1, first {tmp_path}/train.jsonl:{last}"
    assert (empty in shown) == has_texts
    leaked = len(rows["valid"])
    found = f"equal to a training row after tokenization: 1, first {tmp_path}/valid.jsonl:{leaked}"
    assert f"  {found}" in shown
