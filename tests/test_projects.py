"""Rendered projects: their own tests pass, the code in READMEs works, data are read correctly."""

from __future__ import annotations

import json
import os
import re
import sys
from pathlib import Path

import pytest
from safetensors import safe_open

from conftest import SCRIPTS, TASKS, some
from running import ACCELERATE, run, run_python

TWO_PROCESSES: list[str | Path] = [ACCELERATE, "launch", "--config_file", "configs/cpus.yaml"]
# The slow tests with the marker `proof` test code that is the same for every task: run them for one
# task by default.
WITH_PROOFS = "classification"
# Task, part and number of parts: the test files are divided into parts, so that workers share them.
OWN_TESTS = [
    (task, part, parts)
    for task in TASKS
    for parts in [2 if task == WITH_PROOFS or "TEST_ALL" in os.environ else 1]
    for part in range(parts)
]


def run_script(project: Path, name: str, *arguments: str | Path) -> str:
    """Run a script of tests/scripts/ with the modules of a project; return its output."""
    return run_python(project, SCRIPTS / name, *arguments).stdout


def write_rows(path: Path, rows: list[dict]) -> None:
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))


@pytest.mark.parametrize(("task", "part", "parts"), OWN_TESTS)
def test_own_tests_pass(task: str, part: int, parts: int, project: Path) -> None:
    files = sorted(path.name for path in (project / "tests").glob("test_*.py"))
    chosen = [f"tests/{name}" for name in files[part::parts]]
    command = [sys.executable, "-m", "pytest", *chosen, "-q", "-p", "no:cacheprovider"]
    if parts > 1:
        command += ["-m", ""]
    run(project, *command, timeout=1800)


def test_run_of_two_processes_and_the_code_of_readmes_work(task: str, project: Path) -> None:
    command = ["train.py", "--max_steps", "6"]
    if task in some(TASKS):
        done = run(project, *TWO_PROCESSES, *command)
    else:
        done = run_python(project, *command, ranks=2)
    bar = r"\[Epoch 0\] \[TRAIN\]: +\d+%\|.*\| 6/\d+ \[\d\d:\d\d<.*, loss=[\d.]+, lr=[\d.e-]+"
    assert re.search(bar, done.stderr)
    assert re.search(r"\[Epoch 0\] \[VALID\]: 100%\|.*\| \d+/\d+ \[.*loss=", done.stderr)
    log = json.loads((project / "outputs" / "log.json").read_text())
    assert log["Epoch 0"]["train_log"]["loss"] > 0
    assert log["Epoch 0"]["valid_log"]["loss"] > 0
    assert float(run_script(project, "use_of_the_original.py")) > 0

    readme = (project / "README.md").read_text(encoding="utf-8")
    blocks = re.findall(r"^```py\n(.+?)^```", readme, re.DOTALL | re.MULTILINE)
    assert blocks
    snippets = "\n".join(blocks).replace("path/to/best", "outputs/best")
    (project / "snippets.py").write_text(snippets, encoding="utf-8")
    run_python(project, "snippets.py")


@pytest.mark.parametrize("task", ["classification"])
def test_unknown_label_is_refused_in_one_sentence(task: str, project: Path) -> None:
    rows = [{"text": "Hello", "label": "ham"}, {"text": "Win", "label": "scam"}]
    write_rows(project / "odd.jsonl", rows)
    done = run_python(project, "train.py", "--valid_input", "odd.jsonl", code=2)
    expected = "train.py: odd.jsonl:2: unknown label 'scam'; expected one of ham, spam\n"
    assert done.stderr == expected


@pytest.mark.parametrize("task", ["classification"])
def test_labels_are_sorted_and_keep_their_names(task: str, project: Path) -> None:
    for labels in (["ham", "no", "spam"], ["-1", "b", "2", "10"]):
        write_rows(project / "t.jsonl", [{"text": "Hello", "label": n} for n in reversed(labels)])
        assert run_script(project, "label_order.py", "t.jsonl") == f"{labels}\n"


@pytest.mark.parametrize("task", ["causal_lm"])
@pytest.mark.parametrize("script", ["causal_blocks", "causal_samples", "separate_documents"])
def test_blocks_samples_and_losses_of_causal_lm_are_correct(script: str, project: Path) -> None:
    """The docstring of each script describes what it checks."""
    run_script(project, f"{script}.py")


@pytest.mark.parametrize("task", ["seq2seq", "causal_lm"])
@pytest.mark.parametrize("pad_token", ["", "</s>"])
def test_eos_is_a_target_if_there_is_no_other_padding_token(pad_token: str, project: Path) -> None:
    run_script(project, "end_marks.py", pad_token)


@pytest.mark.parametrize("task", ["causal_lm"])
def test_plain_text_is_one_document(task: str, project: Path) -> None:
    text = "One line.\n\n  Another, with spaces. \nThe last"
    (project / "t.txt").write_text(text)
    assert run_script(project, "plain_text.py", "t.txt") == f"{text!r}\n"


@pytest.mark.parametrize("task", ["causal_lm"])
def test_run_of_two_processes_accepts_separate_documents(project: Path) -> None:
    options = ["--max_steps", "4", "--separate_documents", "--gradient_checkpointing"]
    run_python(project, "train.py", *options, ranks=2)
    state = json.loads((project / "outputs" / "last" / "training_state.json").read_text())
    assert state["args"]["separate_documents"]


# Use causal_lm, whose base model has no dropout: compiled dropout draws other random numbers.
@pytest.mark.parametrize("task", ["causal_lm"])
def test_compiling_changes_neither_losses_nor_tensor_names(task: str, project: Path) -> None:
    results: list[tuple[list[str], float]] = []
    for flags in ([], ["--compile"]):
        outdir = project / f"run{len(results)}"
        command = ["train.py", "--max_steps", "3", "--outdir", str(outdir), *flags]
        if flags:
            done = run(project, sys.executable, *command, TORCH_LOGS="recompiles")
            assert done.stderr.count("Recompiling") <= 1  # for validation
        else:
            run_python(project, *command)
        with safe_open(outdir / "last" / "model.safetensors", "pt") as weights:
            names = sorted(weights.keys())
        log = json.loads((outdir / "log.json").read_text())
        results.append((names, log["Epoch 0"]["valid_log"]["loss"]))
    assert results[0][0] == results[1][0]
    assert results[0][1] == pytest.approx(results[1][1], rel=1e-4)
