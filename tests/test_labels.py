"""Classification of texts and pairs of texts, with one label, several labels, or a number."""

from __future__ import annotations

import json
import random
from collections.abc import Callable
from pathlib import Path

import pytest

from conftest import SCRIPTS, Render
from running import run_python

WORDS = ["good", "bad", "cheap", "dear", "quick", "slow", "warm", "cold"]


def single(words: list[str]) -> str:
    return "yes" if "good" in words else "no"


def several(words: list[str]) -> list[str]:
    return [name for name in ("good", "cheap", "warm") if name in words]


def value(words: list[str]) -> float:
    return 0.25 + words.count("good") - 0.5 * words.count("bad")


def write(path: Path, label: Callable, count: int, seed: int) -> None:
    draw = random.Random(seed)
    rows = []
    for _ in range(count):
        words = draw.choices(WORDS, k=draw.randint(2, 9))
        rows.append({"text": " ".join(words[1:]), "more": words[0], "label": label(words)})
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")


@pytest.mark.parametrize(
    ("label", "scores", "reached", "of_predictions"),
    [
        (single, {"accuracy", "macro_f1", "ece"}, ("accuracy", 0.9), "accuracy"),
        (
            several,
            {"exact_match", "micro_f1", "macro_f1", "tuned_macro_f1"},
            ("micro_f1", 0.9),
            "exact_match",
        ),
        (value, {"mean_absolute_error", "pearson"}, ("pearson", 0.9), "mean_absolute_error"),
    ],
)
def test_each_type_of_label_is_trained_and_predicted(
    label: Callable,
    scores: set[str],
    reached: tuple[str, float],
    of_predictions: str,
    render: Render,
    tmp_path: Path,
) -> None:
    project = render(task="classification")
    for name, count, seed in (("train", 480, 0), ("valid", 100, 1)):
        write(tmp_path / f"{name}.jsonl", label, count, seed)
    data = [f"--{name}_input={tmp_path / name}.jsonl" for name in ("train", "valid")]
    options = ["--pair_column=more", "--epochs=6", f"--metric_for_best_model={reached[0]}"]
    outdir = tmp_path / "run"
    run_python(project, "train.py", *data, *options, f"--outdir={outdir}")
    log = json.loads((outdir / "log.json").read_text())
    found = [entry["valid_log"] for entry in log.values()]
    assert scores | {"loss", "count"} == found[0].keys()
    best = max(found, key=lambda entry: entry[reached[0]])
    assert best[reached[0]] > reached[1]
    output = tmp_path / "out.jsonl"
    arguments = ["--checkpoint", str(outdir / "best"), "--input", str(tmp_path / "valid.jsonl")]
    if label is several:  # exact_match uses this threshold
        arguments += ["--threshold", "0.5"]
    run_python(project, "predict.py", *arguments, "--output", str(output))
    rows = [json.loads(line) for line in (tmp_path / "valid.jsonl").read_text().splitlines()]
    predicted = [json.loads(line) for line in output.read_text().splitlines()]
    points = 0.0
    for row, answer in zip(rows, predicted, strict=True):
        assert (row["text"], row["more"]) == (answer["text"], answer["more"])
        if isinstance(row["label"], float):
            points += abs(answer["prediction"] - row["label"])
        elif isinstance(row["label"], list):  # the order may differ
            points += sorted(answer["prediction"]) == sorted(row["label"])
        else:
            points += answer["prediction"] == row["label"]
    assert points / len(rows) == pytest.approx(best[of_predictions], rel=1e-4)


@pytest.mark.parametrize(
    ("cell", "words"),
    [
        ('["good", null]', "train.jsonl:3: a list in 'label' holds null; expected text"),
        ("[]", "train.jsonl: 1 label in 'label'; expected at least 2"),
    ],
)
def test_invalid_lists_of_labels_are_refused(
    cell: str, words: str, render: Render, tmp_path: Path
) -> None:
    project = render(task="classification")
    rows = ['["good"]', "[]", cell]
    text = "".join(f'{{"text": "a", "label": {labels}}}\n' for labels in rows)
    (tmp_path / "train.jsonl").write_text(text)
    outdir = f"--outdir={tmp_path}/run"  # do not write into the project, which other tests use
    done = run_python(project, "train.py", f"--train_input={tmp_path}/train.jsonl", outdir, code=2)
    assert words in done.stderr.splitlines()[-1]


@pytest.mark.parametrize(
    ("label", "wrong", "words"),
    [
        (single, '"maybe"', "valid.jsonl:21: unknown label 'maybe'; expected one of no, yes"),
        (several, '["good", "dear"]', "valid.jsonl:21: unknown label 'dear'; expected one of"),
        (value, '"much"', "valid.jsonl:21: unknown label 'much'; expected a number"),
    ],
)
def test_unknown_label_is_refused_with_its_line(
    label: Callable, wrong: str, words: str, render: Render, tmp_path: Path
) -> None:
    project = render(task="classification")
    write(tmp_path / "train.jsonl", label, 40, 0)
    write(tmp_path / "valid.jsonl", label, 20, 1)
    row = f'{{"text": "good", "more": "bad", "label": {wrong}}}\n'
    content = (tmp_path / "valid.jsonl").read_text()
    if label is value:  # use CSV, since the values of a JSON column have one type
        lines = [json.loads(line) for line in [*content.splitlines(), row]]
        csv = "".join(f"{line['text']},{line['label']}\n" for line in lines)
        (tmp_path / "valid.csv").write_text("text,label\n" + csv)
        words = words.replace("valid.jsonl:21", "valid.csv:22")
    else:
        (tmp_path / "valid.jsonl").write_text(content + row)
    valid = next(tmp_path.glob("valid.csv"), tmp_path / "valid.jsonl")
    files = [f"--train_input={tmp_path}/train.jsonl", f"--valid_input={valid}"]
    done = run_python(project, "train.py", *files, f"--outdir={tmp_path}/run", code=2)
    assert words in done.stderr.splitlines()[-1]


def test_label_numbers_of_the_hub_are_read_as_names(render: Render, tmp_path: Path) -> None:
    """Data sets of the Hub with a `ClassLabel` feature store numbers; the feature has the names."""
    project = render(task="classification")
    done = run_python(project, SCRIPTS / "class_labels.py", tmp_path)
    single, several, error = done.stdout.splitlines()
    assert single == "['cold', 'glad', 'sad'] [0, 2, 1]"
    assert several == "['cold', 'glad', 'sad'] [[1.0, 1.0, 0.0], [0.0, 0.0, 0.0], [0.0, 0.0, 1.0]]"
    assert "row 2" in error and "'label' is the class id -1; expected an id from 0 to 1" in error
