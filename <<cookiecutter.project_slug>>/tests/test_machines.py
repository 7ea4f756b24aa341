"""If one of two machines lacks a file or has different data, both print one sentence and exit."""

import json
import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from functools import partial
from pathlib import Path

import datasets
import pytest

from conftest import ROOT
from errors import REFUSED
from helpers.processes import Launch

pytestmark = pytest.mark.proof


@contextmanager
def on_its_machine(folder: Path) -> Iterator[None]:
    """Give each process its own working directory and cache, as on a separate machine."""
    machine = folder / f"machine{os.environ['RANK']}"
    os.chdir(machine)
    os.environ.update(LOCAL_RANK="0", LOCAL_WORLD_SIZE="1")
    datasets.config.HF_DATASETS_CACHE = machine / "cache"
    yield


@pytest.fixture
def machines(sample, tmp_path) -> Path:
    for machine in (tmp_path / "machine0", tmp_path / "machine1"):
        machine.mkdir()
        for name in ("train.jsonl", "valid.jsonl"):
            shutil.copy(sample / name, machine)
        shutil.copytree(ROOT / "tiny", machine / "base")
    return tmp_path


ARGUMENTS = [
    *("--train_input", "train.jsonl", "--valid_input", "valid.jsonl", "--model_id", "base"),
    *("--max_len", "48", "--batch_size", "4", "--max_steps", "2"),
]


def launch(machines: Path, *more: str) -> Launch:
    output = machines / f"output{len(list(machines.glob('output*')))}"
    run = [*ARGUMENTS, "--outdir", str(machines / "run"), *more]
    return Launch(run, output, 2, partial(on_its_machine, machines))


def assert_both_end(run: Launch, sentence: str, program: str = "train.py: ") -> None:
    """Check that both processes exit with code 2 and print one line that contains the sentence."""
    run.expect(REFUSED)
    for rank in (0, 1):
        lines = [line for line in run.output(rank).splitlines() if line.startswith(program)]
        assert len(lines) == 1, run.output(rank)
        assert sentence in lines[0], (rank, lines)
        assert "Traceback" not in run.output(rank)


def test_machines_with_equal_files_train(machines):
    launch(machines).expect()


@pytest.mark.parametrize("name", ["train.jsonl", "valid.jsonl"])
def test_missing_file_is_reported_on_both_machines(name, machines):
    (machines / "machine1" / name).unlink()
    assert_both_end(launch(machines), f"{name}: ")


def test_missing_base_model_is_reported_on_both_machines(machines):
    shutil.rmtree(machines / "machine1" / "base")
    assert_both_end(launch(machines), "base: ")


@pytest.mark.parametrize("name", ["train", "valid"])
@pytest.mark.parametrize("change", ["shorter", "other text"])
def test_different_data_are_reported_before_the_first_step(change, name, machines):
    """Hashes are compared, so that a difference is also found if the number of rows is the same."""
    file = machines / "machine1" / f"{name}.jsonl"
    lines = file.read_text(encoding="utf-8").splitlines(keepends=True)
    lines = lines[:-3] if change == "shorter" else [*lines[:-1], lines[0]]
    file.write_text("".join(lines), encoding="utf-8")
    run = launch(machines)
    assert_both_end(run, f"content hash of --{name}_input: ")
    assert "TRAIN" not in run.output()


def test_different_base_models_are_reported_on_both_machines(machines):
    """DDP would broadcast the weights of rank 0, but not settings such as dropout."""
    path = machines / "machine1" / "base" / "config.json"
    config = json.loads(path.read_text(encoding="utf-8"))
    path.write_text(json.dumps({**config, "layer_norm_eps": 0.5}), encoding="utf-8")
    assert_both_end(launch(machines), "checksum of configuration and weights: ")


def test_missing_checkpoint_is_reported_on_both_machines(machines):
    launch(machines, "--outdir", "run").expect()  # only machine 0 saves
    assert not (machines / "machine1" / "run" / "last").exists()
    run = launch(machines, "--outdir", "run", "--restore_dir", "run/last")
    assert_both_end(run, "run/last: not a checkpoint")


@pytest.mark.parametrize("change", ["missing checkpoint", "missing input", "other input"])
def test_predict_reports_what_differs_between_machines(change, machines):
    launch(machines).expect()
    for machine in ("machine0", "machine1"):
        shutil.copytree(machines / "run" / "best", machines / machine / "best")
    there = machines / "machine1"
    if change == "missing checkpoint":
        shutil.rmtree(there / "best")
    elif change == "missing input":
        (there / "valid.jsonl").unlink()
    else:
        shutil.copy(there / "train.jsonl", there / "valid.jsonl")
    predict = ["--checkpoint", "best", "--input", "valid.jsonl"]
    patch = partial(on_its_machine, machines)
    run = Launch(predict, machines / "output of predict", 2, patch, "predict")
    sentences = {"missing checkpoint": "best: ", "missing input": "valid.jsonl: "}
    assert_both_end(run, sentences.get(change, "content hash of --input: "), "predict.py: ")
