"""Checkpoints of earlier versions resume and predict like stock checkpoints, or are refused.

These checkpoints contain code, which is not executed, and their tensor names have a prefix. A
checkpoint is refused if the model of the project has changed since the version that saved it.
"""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from safetensors.torch import load_file

from conftest import SCRIPTS, some
from running import run_python

DATA = ["--train_input", "rows.jsonl", "--valid_input", "rows.jsonl"]
FIELDS = {"classification": {"classifier_dropout": 0.1}}  # in addition to the fields of all tasks
FROM_PRETRAINED = "from model.modeling import Model; Model.from_pretrained('old/last')"


def run(project: Path, *command: str | Path, code: int = 0) -> str:
    """Run Python in the project; check that the code of the checkpoint is not executed."""
    done = run_python(project, *command, code=code)
    output = done.stdout + done.stderr
    assert "executed" not in output
    return output


@pytest.fixture
def old(project: Path, task: str) -> Path:
    """A project with outputs/last, and old/last in the layout of earlier versions."""
    with (project / "data" / "train.jsonl").open(encoding="utf-8") as file:
        rows = [next(file) for _ in range(24)]
    (project / "rows.jsonl").write_text("".join(rows), encoding="utf-8")
    run(project, "train.py", *DATA, "--max_steps", "2", "--max_len", "48")
    fields = json.dumps(FIELDS.get(task, {}))
    run(project, SCRIPTS / "old_checkpoint.py", "outputs/last", "old/last", fields)
    return project


@pytest.mark.parametrize("task", some(["causal_lm", "seq2seq"]))
def test_old_checkpoint_resumes_and_predicts_like_a_stock_checkpoint(old: Path) -> None:
    weights = []
    predictions = []
    for folder in ("old", "outputs"):
        inputs = ["--checkpoint", f"{folder}/last", "--input", "rows.jsonl"]
        run(old, "predict.py", *inputs, "--max_new_tokens", "4")
        predictions.append((old / "predictions.jsonl").read_text(encoding="utf-8"))
        run(old, "train.py", "--restore_dir", f"{folder}/last", "--max_steps", "4")
        weights.append(load_file(old / folder / "last" / "model.safetensors"))
    run(old, "-c", FROM_PRETRAINED)
    assert predictions[0] == predictions[1]
    assert weights[0].keys() == weights[1].keys()
    assert all((weights[0][name] == weights[1][name]).all() for name in weights[0])


@pytest.mark.parametrize("task", ["classification"])
def test_old_checkpoint_of_a_changed_model_is_refused_without_a_traceback(old: Path) -> None:
    for command in (
        ["train.py", "--restore_dir", "old/last"],
        ["train.py", "--model_id", "old/last", "--outdir", "new", *DATA],
        ["predict.py", "--checkpoint", "old/last", "--input", "rows.jsonl"],
    ):
        output = run(old, *command, code=2)
        assert "saved by an earlier version, whose model used mean pooling" in output
        assert "Traceback" not in output
