"""sweep.py runs trials with different arguments, seeds and folds, and resumes after a signal."""

import json
import math
import re
import signal
import statistics
import subprocess
import sys
import time
from pathlib import Path

import pytest

import sweep
from errors import RunError
from helpers.assertions import read_log
from helpers.processes import STOPPED, Launch
from model.dataset import generate_dataset
from training.search_space import grid, parse_space

ROOT = Path(__file__).parent.parent
pytest.importorskip("optuna")


class ForkedTraining:
    """Runs train.py like `Training`, but in a forked process, which starts faster."""

    def __init__(self, launch: str):
        assert launch == "python"

    def run(self, arguments: list[str], output: Path) -> int:
        train = Launch(arguments, output.with_suffix(""))
        (code,) = train.wait()
        with output.open("a", encoding="utf-8") as file:
            file.write(train.output())
        return code


@pytest.fixture
def forked_sweep(monkeypatch, capsys):
    """Return a function that runs sweep.py in this process, and returns its output."""
    monkeypatch.setattr(sweep, "Training", ForkedTraining)

    def run(outdir: Path, *arguments: str) -> str:
        sweep.main(["--outdir", str(outdir), *arguments])
        return capsys.readouterr().out

    return run


def best_loss(folder: Path) -> float:
    return min(entry["valid_log"]["loss"] for entry in read_log(folder).values())


@pytest.fixture
def train_arguments(arguments) -> list[str]:
    """Arguments of train.py, without `--outdir`."""
    position = arguments.index("--outdir")
    return [*arguments[:position], *arguments[position + 2 :], "--max_steps", "3"]


@pytest.mark.proof
def test_table_has_mean_standard_deviation_and_failed_trials(
    tmp_path, train_arguments, forked_sweep
):
    search = ("--search", "lr=1e-4,1e-2,1e30", "--seeds", "1", "2")
    text = forked_sweep(tmp_path / "sweep", *search, "--", *train_arguments)
    rows = [line.split("|")[1:-1] for line in text.splitlines() if line.startswith("|")][2:]
    assert [row[2].strip() for row in rows[2:]] == ["failed"]  # the run with lr=1e30 diverges
    for trial, lr, mean, spread, runs in (map(str.strip, row) for row in rows[:2]):
        folder = tmp_path / "sweep" / f"trial-{int(trial):03d}"
        losses = [best_loss(folder / f"seed-{seed}") for seed in (1, 2)]
        args = json.loads((folder / "seed-2/last/training_state.json").read_text())["args"]
        assert (args["lr"], args["seed"]) == (float(lr), 2)
        assert math.isclose(float(mean), statistics.mean(losses), rel_tol=1e-3)
        assert math.isclose(float(spread), statistics.stdev(losses), rel_tol=1e-3)
        assert runs == "2"
    assert float(rows[0][2]) < float(rows[1][2])
    assert (tmp_path / "sweep" / "results.png").read_bytes().startswith(b"\x89PNG")


@pytest.mark.proof
def test_interrupted_and_resumed_sweep_has_the_same_results(
    tmp_path, train_arguments, forked_sweep
):
    search = ("--search", "lr=log:1e-4..1e-2", "--trials", "2", "--", *train_arguments)
    whole = tmp_path / "whole"
    expected = forked_sweep(whole, *search).split("\n| ", 1)[1]
    outdir = tmp_path / "interrupted"
    command = [sys.executable, "sweep.py", "--outdir", str(outdir), *search]
    process = subprocess.Popen(command, cwd=ROOT, stdout=subprocess.DEVNULL)
    while not (outdir / "trial-001" / "run" / ".lock").exists():
        assert process.poll() is None
        time.sleep(0.02)
    process.send_signal(signal.SIGTERM)
    assert process.wait() == STOPPED
    found = forked_sweep(outdir, *search).split("\n| ", 1)[1]
    assert found.replace(str(outdir), str(whole)) == expected


@pytest.mark.proof
def test_numbers_of_training_examples_of_two_folds_add_up(
    tmp_path, sample, tokenizer, train_arguments, forked_sweep
):
    position = train_arguments.index("--valid_input")
    fixed = [*train_arguments[:position], *train_arguments[position + 2 :]]
    forked_sweep(tmp_path / "sweep", "--folds", "2", "--", *fixed)
    count = 0
    for fold in range(2):
        folder = tmp_path / "sweep" / "trial-000" / f"fold-{fold}"
        count += json.loads((folder / "last/training_state.json").read_text())["data"]["examples"]
    assert count == len(generate_dataset(sample / "train.jsonl", tokenizer, 48))


@pytest.mark.proof
def test_invalid_argument_of_train_py_ends_the_sweep(tmp_path, forked_sweep):
    with pytest.raises(RunError, match="missing.jsonl"):
        forked_sweep(tmp_path / "s", "--seeds", "1", "--", "--train_input", "missing.jsonl")


@pytest.mark.parametrize(
    "arguments, sentence",
    [
        ((), "nothing to vary"),
        (("--search", "lr"), "--search lr: expected NAME="),
        (("--search", "lr=1e-3..1e-4", "--trials", "2"), "expected LOW < HIGH"),
        (("--search", "lr=1e-4..1e-3"), "expected --trials, too"),
        (("--search", "rate=1,2"), "train.py has no argument rate"),
        (("--search", "lr=1,2", "--", "--lr", "1"), "both after `--` and in --search"),
        (("--seeds", "1", "--", "--outdir", "x"), "set or excluded by sweep.py"),
        (("--folds", "3"), "expected --train_input"),
        (("--search", "tf32=1,2"), "expected tf32=true,false"),
        (("--seeds", "1", "--launch", "no-such-launcher"), "no-such-launcher: no such command"),
        (("--seeds", "1", "--launch", "'"), "--launch ': no such command"),
        (("--seeds", "1", "--outdir", "sweep.py"), "sweep.py: not writable"),
        (("--search", "lr=1,2", "--", "--learning_rate", "1"), "both after `--` and in --search"),
        (("--search", "lr=1,2", "learning_rate=3,4"), "lr is given twice"),
        (("--seeds", "1", "--", "--output_dir", "x"), "--outdir: set or excluded by sweep.py"),
    ],
)
def test_bad_arguments_are_refused(tmp_path, arguments, sentence):
    with pytest.raises(RunError, match=re.escape(sentence)):
        sweep.main(["--outdir", str(tmp_path / "sweep"), *arguments])
    assert not (tmp_path / "sweep" / "study.db").exists()


def test_yaml_file_cannot_set_arguments_that_sweep_py_excludes(tmp_path):
    for text, name in (("valid_input: a.jsonl", "valid_input"), ("dry_run: true", "dry_run")):
        (tmp_path / "run.yaml").write_text(f"train_input: b.jsonl\n{text}\n", encoding="utf-8")
        arguments = ["--folds", "2", "--outdir", str(tmp_path / "sweep")]
        with pytest.raises(RunError, match=f"--{name}: set or excluded by sweep.py"):
            sweep.main([*arguments, "--", "--config", str(tmp_path / "run.yaml")])
    assert not (tmp_path / "sweep").exists()


def test_grid_has_all_combinations():
    space = parse_space(["lr=1e-4,1e-3", "batch_size=8,16"])
    assert list(grid(space)) == [
        {"lr": lr, "batch_size": size} for lr in ("1e-4", "1e-3") for size in ("8", "16")
    ]
    with pytest.raises(RunError, match="expected --trials"):
        list(grid(parse_space(["lr=log:1e-4..1e-3"])))
