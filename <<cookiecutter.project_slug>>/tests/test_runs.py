"""Runs of train.py: files, resuming, several processes, and early stopping."""

import re
from contextlib import contextmanager
from functools import partial
from unittest import mock

import datasets
import pytest
import torch
from accelerate import Accelerator
from transformers import AutoTokenizer, PreTrainedTokenizerBase

import train
import training.opening
from errors import RunError
from helpers import seams
from helpers.assertions import (
    WEIGHTS_FILE,
    assert_bit_identical,
    assert_equal_tensors,
    read_log,
    read_result,
    read_state,
)
from helpers.processes import Launch
from helpers.seams import Killed
from model.modeling import Model
from training import losses
from training.batches import Step
from training.contract import Task
from training.losses import LossMeter
from training.state import TrainState


def test_run_writes_best_last_and_log(arguments, tmp_path):
    train.main(arguments)
    run = tmp_path / "run"
    log = read_log(run)
    assert list(log) == ["Epoch 0", "Epoch 1"]
    losses = [entry["valid_log"]["loss"] for entry in log.values()]
    assert losses[1] < losses[0]
    for name in ("best", "last"):
        state = read_state(run / name)
        assert state["args"]["max_len"] == 48
        assert state["current_epoch"] == 2
        assert state["min_valid_loss"] == min(losses)
        model = Model.from_pretrained(run / name)
        tokens = AutoTokenizer.from_pretrained(run / name)("Well then", return_tensors="pt")
        assert next(model.parameters()).dtype == torch.float32
        assert tokens["input_ids"].numel() > 0
    assert not (run / "best" / "optimizer.safetensors").exists()


PROOF = pytest.mark.proof


@pytest.mark.parametrize(
    "micro_batches", [9, *(pytest.param(n, marks=PROOF) for n in (3, 8, 12, 13, 20))]
)
def test_resumed_run_is_bit_identical(micro_batches, arguments, tmp_path, uninterrupted):
    arguments += ["--batch_size", "4", "--accumulation", "2", "--save_steps", "1"]
    with seams.killed_before_micro_batch(micro_batches), pytest.raises(Killed):
        train.main(arguments)
    train.main(["--restore_dir", str(tmp_path / "run" / "last")])
    assert_bit_identical(tmp_path / "run", uninterrupted(arguments))


@pytest.mark.proof
def test_run_killed_before_a_validation_validates_on_resume(arguments, tmp_path, uninterrupted):
    arguments += ["--save_steps", "1"]
    with seams.killed_before_validation(), pytest.raises(Killed):
        train.main(arguments)
    train.main(["--restore_dir", str(tmp_path / "run" / "last")])
    assert_bit_identical(tmp_path / "run", uninterrupted(arguments))


@pytest.mark.proof
def test_resumed_run_restores_a_missing_log(arguments, tmp_path):
    train.main(arguments)
    log = tmp_path / "run" / "log.json"
    expected = log.read_text()
    log.unlink()
    train.main(["--restore_dir", str(tmp_path / "run" / "last")])
    assert log.read_text() == expected


@pytest.mark.proof
@pytest.mark.parametrize("damage", ["cut", "altered", "missing", "manifest"])
def test_previous_checkpoint_is_used_if_the_last_one_is_damaged(
    damage, arguments, tmp_path, capfd, uninterrupted
):
    arguments += ["--save_steps", "1"]
    with seams.killed_before_micro_batch(4), pytest.raises(Killed):
        train.main(arguments)
    last = tmp_path / "run" / "last"
    weights = last / WEIGHTS_FILE
    content = weights.read_bytes()
    if damage == "cut":
        weights.write_bytes(content[:-100])
    elif damage == "altered":
        weights.write_bytes(content[:-1] + bytes([content[-1] ^ 1]))
    else:
        (weights if damage == "missing" else last / "manifest.json").unlink()
    train.main(["--restore_dir", str(last)])
    assert "resuming from the newest intact checkpoint" in capfd.readouterr().out
    assert_bit_identical(tmp_path / "run", uninterrupted(arguments))


def test_nan_loss_is_never_the_best():
    state = TrainState(8)
    record = partial(state.record, metric="loss", seconds=0.0, speed={}, epoch_size=8)
    assert not record({"loss": 1.0}, {"loss": float("nan")})
    assert record({"loss": 1.0}, {"loss": 2.0})
    assert not record({"loss": 1.0}, {"loss": float("nan")})
    assert state.min_valid_loss == 2.0


@pytest.mark.proof
def test_run_with_loader_workers_has_bit_identical_weights(arguments, tmp_path, uninterrupted):
    Launch([*arguments, "--num_workers", "2"], tmp_path / "output").expect()
    expected = read_result(uninterrupted(arguments))
    assert_equal_tensors(read_result(tmp_path / "run").weights, expected.weights)


def test_latest_loss_is_that_of_all_micro_batches_of_a_step(monkeypatch):
    monkeypatch.setitem(losses.READ_EVERY, "cpu", 1)
    meter = LossMeter(Accelerator())
    for index, parts in enumerate(([1.0, 2.0, 4.0], [8.0, 16.0])):
        step = Step(0, index, [0], num_items=1, is_training=False)
        for part in parts:
            meter.update({"loss": torch.tensor(part)}, step)
        assert meter.latest == {"loss": sum(parts)}
    assert meter.sums() == {"loss": 31.0}


def rates(output: str) -> list[tuple[int, int, float]]:
    """Return (step, total steps, learning rate) for each update of the training progress bars."""
    bar = r"\[Epoch (\d+)\] \[TRAIN\]: +\d+%\|.*?\| (\d+)/(\d+) \[.*?lr=([\d.e-]+)[],]"
    return [
        (int(epoch) * int(total) + int(step) - 1, 2 * int(total), float(lr))
        for epoch, step, total, lr in re.findall(bar, output.replace("\r", "\n"))
    ]


@pytest.mark.proof
@pytest.mark.parametrize("accumulation", [1, 4])
@pytest.mark.parametrize("processes", [1, 2])
def test_schedule_counts_optimizer_steps(processes, accumulation, arguments, tmp_path):
    batch_size = 8 // accumulation // processes
    arguments += ["--accumulation", str(accumulation), "--batch_size", str(batch_size)]
    arguments += ["--num_warmup_steps", "5", "--lr", "0.004"]
    run = Launch(arguments, tmp_path / "output", processes)
    shown = rates(run.expect())
    assert all("Epoch" not in run.output(rank) for rank in range(1, processes))
    assert {step for step, *_ in shown} >= {shown[0][1] // 2 - 1, shown[0][1] - 1}
    for step, total, lr in shown:
        expected = 0.004 * (step / 5 if step < 5 else (total - step) / (total - 5))
        assert lr == pytest.approx(expected, rel=0.01)


@pytest.mark.proof
def test_overflowed_step_does_not_move_the_schedule(arguments, tmp_path, monkeypatch):
    start = training.opening.start
    forward = Task.forward

    def forward_64_times(*args):
        outputs, losses = forward(*args)
        return outputs, {name: loss * 64 for name, loss in losses.items()}

    def start_with_a_scaler(*args):
        accelerator = start(*args)
        accelerator.scaler = torch.amp.GradScaler("cpu", init_scale=2.0**127)
        return accelerator

    monkeypatch.setattr(training.opening, "start", start_with_a_scaler)
    monkeypatch.setattr(Task, "forward", forward_64_times)
    # Skip a check that this test does not need.
    monkeypatch.setattr(training.opening, "check_contract", lambda *_: [])
    train.main([*arguments, "--max_steps", "10"])
    state = read_state(tmp_path / "run" / "last")
    skipped = state["step"] - state["scheduler_steps"]
    assert state["step"] == 10
    assert 0 < skipped < 10
    assert state["scaler"]["scale"] == 2.0 ** (127 - skipped)
    train.main(["--restore_dir", str(tmp_path / "run" / "last"), "--max_steps", "11"])
    state = read_state(tmp_path / "run" / "last")
    assert state["scaler"]["scale"] <= 2.0 ** (127 - skipped)  # a new scaler would start at 2^127


@pytest.mark.proof
def test_resumed_run_is_bit_identical_in_two_processes(in_two_processes, tmp_path):
    constant = ("--lr_scheduler_type", "constant", "--max_steps")
    in_two_processes("whole", *constant, "12")
    in_two_processes("run", *constant, "8")
    output = in_two_processes("run", *constant, "12", "--restore_dir", "auto")
    assert "--max_steps is now 12; it was 8" in output
    result, expected = read_result(tmp_path / "run"), read_result(tmp_path / "whole")
    assert_equal_tensors(result.weights, expected.weights)
    assert_equal_tensors(result.moments, expected.moments)


@pytest.mark.proof
def test_another_number_of_processes_gives_the_same_losses(
    arguments, sample, tmp_path, in_two_processes
):
    arguments += ["--model_id", str(sample / "tiny"), "--lr_scheduler_type", "constant"]
    train.main([*arguments, "--max_steps", "12", "--outdir", str(tmp_path / "whole")])
    last = ["--restore_dir", str(tmp_path / "run" / "last")]
    train.main([*arguments, "--max_steps", "4", "--batch_size", "4", "--accumulation", "2"])
    in_two_processes("run", *last, "--max_steps", "9")
    train.main([*last, "--max_steps", "12", "--batch_size", "3"])
    # Do not compare the weights: Adam makes a full step even for a gradient that should be 0, but
    # has a rounding error.
    result, expected = read_result(tmp_path / "run"), read_result(tmp_path / "whole")
    for epoch, entry in expected.log.items():
        for part in ("train_log", "valid_log"):
            assert result.log[epoch][part]["loss"] == pytest.approx(entry[part]["loss"], rel=1e-4)
    for name in ("step", "current_epoch", "examples", "train_items", "scheduler_steps"):
        assert result.state[name] == expected.state[name]


@contextmanager
def tokenizing_announced(cache):
    """Print a line when several texts are tokenized; use `cache` as the cache of datasets."""
    datasets.config.HF_DATASETS_CACHE = cache
    call = PreTrainedTokenizerBase.__call__

    def announcing(self, texts=None, *args, **kwargs):
        if isinstance(texts, list) and len(texts) > 1:  # checks tokenize only one text
            print("TOKENIZING", flush=True)
        return call(self, texts, *args, **kwargs)

    with mock.patch.object(PreTrainedTokenizerBase, "__call__", announcing):
        yield


@pytest.mark.proof
def test_texts_are_tokenized_once_for_all_processes_and_runs(arguments, tmp_path):
    patch = partial(tokenizing_announced, tmp_path / "cache")
    arguments += ["--max_steps", "1"]
    run = Launch(arguments, tmp_path / "first", processes=2, patch=patch)
    assert "TOKENIZING" in run.expect()
    assert "TOKENIZING" not in run.output(1)
    again = [*arguments, "--outdir", str(tmp_path / "again")]
    assert "TOKENIZING" not in Launch(again, tmp_path / "second", patch=patch).expect()


@pytest.mark.proof
def test_early_stopping_ends_all_processes(arguments, tmp_path):
    arguments += ["--epochs", "9", "--patience", "2", "--lr", "0"]
    for processes in (1, 2):
        outdir = tmp_path / f"run{processes}"
        run = [*arguments, "--outdir", str(outdir)]
        output = Launch(run, tmp_path / f"output{processes}", processes).expect()
        assert "Early stopping: no better loss in 2 validations" in output
        assert list(read_log(outdir)) == ["Epoch 0", "Epoch 1", "Epoch 2"]
    train.main(["--restore_dir", str(tmp_path / "run1" / "last"), "--patience", "3"])
    assert len(read_log(tmp_path / "run1")) == 4


@pytest.mark.proof
def test_restore_dir_auto_starts_a_run_and_keeps_a_complete_one(arguments, tmp_path):
    arguments += ["--restore_dir", "auto"]
    train.main(arguments)
    manifest = (tmp_path / "run" / "last" / "manifest.json").read_bytes()
    train.main(arguments)
    assert (tmp_path / "run" / "last" / "manifest.json").read_bytes() == manifest
    with pytest.raises(RunError, match="--restore_dir auto"):
        train.main(arguments[:-2])
