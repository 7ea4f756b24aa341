"""Class weights, label smoothing, chosen thresholds, and scores of each label."""

from __future__ import annotations

import json
import random
import shutil
from pathlib import Path

import numpy as np
import pytest
from sklearn.metrics import precision_recall_fscore_support
from sklearn.utils.class_weight import compute_class_weight

from conftest import SCRIPTS, SLUG, Render
from running import run_python

SIZES = {"common": 40, "rare": 12, "rarest": 4}
REFUSED = [
    "--class_weight balanced expects single_label_classification",
    "is for regression; --class_weight balanced expects single_label_classification",
    "--label_smoothing 0.1: expected a single label per example",
    "1.5: expected at least 0 and less than 1",
    "invalid choice: 'inverse'",
    "--threshold: the model is for single_label_classification",
]


def write_rows(path: Path, several: bool = False) -> Path:
    """Write texts with imbalanced labels: one label per text, or one or two if `several`."""
    draw = random.Random(0)
    rows = []
    for label, size in SIZES.items():
        for _ in range(size):
            words = [label, *draw.choices(["see", "the", "cat", "on", "it"], k=draw.randint(1, 9))]
            labels = [label] + ["short"] * (len(words) < 5)
            rows.append({"text": " ".join(words), "label": labels if several else label})
    draw.shuffle(rows)
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    return path


def test_losses_equal_those_of_torch_with_the_weights_of_sklearn(
    render: Render, tmp_path: Path
) -> None:
    rows = write_rows(tmp_path / "rows.jsonl")
    printed = run_python(
        render(task="classification"), SCRIPTS / "class_losses.py", tmp_path
    ).stdout
    first, *errors = printed.splitlines()
    found = json.loads(first)
    assert found == pytest.approx([56 / (3 * size) for size in SIZES.values()], rel=1e-12)
    for error, words in zip(errors, REFUSED, strict=True):
        assert words in error
    labels = np.array([json.loads(line)["label"] for line in rows.read_text().splitlines()])
    expected = compute_class_weight("balanced", classes=np.unique(labels), y=labels)
    assert found == pytest.approx(list(expected), rel=1e-12)


def test_losses_of_tokens_equal_those_of_torch_with_the_weights_of_sklearn(
    render: Render, tmp_path: Path
) -> None:
    """In the data, some texts have several windows, and one label has no token."""
    draw = random.Random(0)
    for name, sizes in (("train", (3, 20, 4, 9, 15, 2)), ("valid", (19, 3, 8))):
        rows = []
        for size in sizes:
            labels = draw.choices(["O", "B-X", "B-Y"], [8, 2, 1], k=size)
            labels[-2:] = ["B-X", "I-X"]
            words = [draw.choice(["see", "the", "cat"]) for _ in labels]
            rows.append(json.dumps({"words": words, "labels": labels}) + "\n")
        (tmp_path / f"{name}.jsonl").write_text("".join(rows), encoding="utf-8")
    project = render(task="token_classification")
    *lines, last = run_python(project, SCRIPTS / "token_losses.py", tmp_path).stdout.splitlines()
    found = json.loads(last)
    assert found["weights"].pop("I-Y") == 0
    assert "labels without a token in the training data, weight 0: I-Y" in lines
    shown = ", ".join(f"{name} {weight:.4g}" for name, weight in found["weights"].items())
    assert f"weights of the labels in the loss: {shown}, I-Y 0" in lines
    names = np.array(list(found["weights"]))
    expected = compute_class_weight("balanced", classes=names, y=found["labels"])
    assert list(found["weights"].values()) == pytest.approx(list(expected), rel=1e-12)


def test_scores_and_thresholds_follow_their_definitions(render: Render, tmp_path: Path) -> None:
    write_rows(tmp_path / "several.jsonl", several=True)
    printed = run_python(
        render(task="classification"), SCRIPTS / "class_scores.py", tmp_path
    ).stdout
    table, (labels, predicted) = json.loads(printed.splitlines()[0])
    expected = zip(*precision_recall_fscore_support(labels, predicted), strict=True)
    for row, values in zip(table.values(), expected, strict=True):
        assert list(row) == ["precision", "recall", "f1", "support"]
        assert list(row.values()) == pytest.approx(list(values), abs=1e-6)


@pytest.mark.parametrize(("task", "shift"), [("seq2seq", "0"), ("chat", "1")])
def test_losses_of_tokens_are_smoothed_only_in_training(
    task: str, shift: str, render: Render
) -> None:
    run_python(render(task=task), SCRIPTS / "smoothed_loss.py", shift)


def test_results_do_not_depend_on_the_split_of_a_batch(render: Render, tmp_path: Path) -> None:
    """Compare gradients, losses, scores and thresholds, with one process and with two."""
    for folder in (tmp_path / "single", tmp_path / "several"):
        folder.mkdir()
        for name in ("train", "valid"):
            write_rows(folder / f"{name}.jsonl", several=folder.name == "several")
    run_python(render(task="classification"), SCRIPTS / "splits.py", tmp_path)


def test_run_with_class_weights_resumes_bit_identically(render: Render, tmp_path: Path) -> None:
    script = Path(__file__).parent / "recipes" / "kill_and_resume.py"
    project = Path(shutil.copytree(render(task="classification"), tmp_path / SLUG))
    rows = write_rows(tmp_path / "rows.jsonl")
    data = [f"--{name}_input={rows}" for name in ("train", "valid")]
    sizes = ["--batch_size", "4", "--max_steps", "16"]  # an epoch has 14 steps
    options = ["--class_weight", "balanced", "--label_smoothing", "0.1"]
    run_python(project, script, "1", *data, *sizes, *options)
