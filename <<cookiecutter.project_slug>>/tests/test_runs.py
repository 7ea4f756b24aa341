"""Runs of train.py: what they leave behind, how they go on, and in how many processes."""

import json
import re
from collections.abc import Callable
from functools import partial
from itertools import count

import datasets
import pytest
import torch
from transformers import AutoTokenizer, PreTrainedTokenizerBase

import train
from model.modeling import Model
from outcome import assert_same, result
from real_runs import Run
from training.state import TrainingState


class Killed(Exception):
    pass


def stop_after(monkeypatch, forward_passes: int) -> None:
    """Let a run die in front of a forward pass: between steps, or within one."""
    seed_all, passes = train.seed_all, 0

    def dying(*key):
        nonlocal passes
        passes += len(key) > 1
        if passes > forward_passes:
            raise Killed
        seed_all(*key)

    monkeypatch.setattr(train, "seed_all", dying)


def test_a_run_leaves_best_last_and_log(arguments, tmp_path):
    train.main(arguments)
    run = tmp_path / "run"
    log = json.loads((run / "log.json").read_text())
    assert list(log) == ["Epoch 0", "Epoch 1"]
    losses = [entry["valid_log"]["loss"] for entry in log.values()]
    assert losses[1] < losses[0]
    for name in ("best", "last"):
        state = json.loads((run / name / "training_state.json").read_text())
        assert state["args"]["max_len"] == 48
        assert state["current_epoch"] == 2
        assert state["min_valid_loss"] == min(losses)
        model = Model.from_pretrained(run / name)
        tokens = AutoTokenizer.from_pretrained(run / name)("Well then", return_tensors="pt")
        assert next(model.parameters()).dtype == torch.float32
        assert tokens["input_ids"].numel() > 0
    assert not (run / "best" / "optimizer.safetensors").exists()


@pytest.mark.parametrize("forward_passes", [3, 8, 9, 12, 13, 20])
def test_a_stopped_run_ends_as_if_it_had_not_been(
    forward_passes, arguments, tmp_path, monkeypatch, left_alone
):
    arguments += ["--batch_size", "4", "--accumulation", "2", "--save_steps", "1"]
    with monkeypatch.context() as patch:
        stop_after(patch, forward_passes)
        with pytest.raises(Killed):
            train.main(arguments)
    train.main(["--restore_dir", str(tmp_path / "run" / "last")])
    assert_same(tmp_path / "run", left_alone(arguments))


def test_a_run_stopped_before_its_validation_goes_on_with_it(
    arguments, tmp_path, monkeypatch, left_alone
):
    arguments += ["--save_steps", "1"]

    def dying(*_):
        raise Killed

    with monkeypatch.context() as patch:
        patch.setattr(train, "valid", dying)
        with pytest.raises(Killed):
            train.main(arguments)
    train.main(["--restore_dir", str(tmp_path / "run" / "last")])
    assert_same(tmp_path / "run", left_alone(arguments))


def test_a_run_killed_before_it_wrote_its_log_has_one_in_the_end(arguments, tmp_path):
    train.main(arguments)
    log = tmp_path / "run" / "log.json"
    expected = log.read_text()
    log.unlink()
    train.main(["--restore_dir", str(tmp_path / "run" / "last")])
    assert log.read_text() == expected


@pytest.mark.parametrize("damage", ["cut", "altered", "missing", "manifest"])
def test_a_damaged_checkpoint_costs_only_the_work_since_the_one_before(
    damage, arguments, tmp_path, monkeypatch, capfd, left_alone
):
    arguments += ["--save_steps", "1"]
    with monkeypatch.context() as patch:
        stop_after(patch, 4)
        with pytest.raises(Killed):
            train.main(arguments)
    last = tmp_path / "run" / "last"
    weights = last / "model.safetensors"
    content = weights.read_bytes()
    if damage == "cut":
        weights.write_bytes(content[:-100])
    elif damage == "altered":
        weights.write_bytes(content[:-1] + bytes([content[-1] ^ 1]))
    else:
        (weights if damage == "missing" else last / "manifest.json").unlink()
    train.main(["--restore_dir", str(last)])
    assert "going on from the one before" in capfd.readouterr().out
    assert_same(tmp_path / "run", left_alone(arguments))


def test_a_loss_that_is_no_number_is_never_the_best():
    state = TrainingState({"metric_for_best_model": "loss"}, {"examples": 8}, 8)
    assert not state.record({"loss": 1.0}, {"loss": float("nan")}, 0.0)
    assert state.record({"loss": 1.0}, {"loss": 2.0}, 0.0)
    assert not state.record({"loss": 1.0}, {"loss": float("nan")}, 0.0)
    assert state.min_valid_loss == 2.0


def test_worker_processes_change_nothing(arguments, tmp_path, left_alone):
    expected = result(left_alone(arguments))[0]
    train.main([*arguments, "--num_workers", "2"])
    for name, tensor in result(tmp_path / "run")[0].items():
        assert torch.equal(tensor, expected[name]), name


@pytest.fixture
def in_two_processes(tmp_path) -> Callable[..., str]:
    def run(*arguments: str) -> str:
        both = Run(list(arguments), tmp_path / f"output{next(numbers)}", processes=2)
        assert both.wait() == [0, 0], both.output() + both.output(1)
        assert "Epoch" not in both.output(1)  # only one process shows bars
        return both.output()

    numbers = count()
    return run


def rates(output: str) -> list[tuple[int, int, float]]:
    """(step, all steps, learning rate) of all that the bars of training have shown."""
    bar = r"\[Epoch (\d+)\] \[TRAIN\]: +\d+%\|.*?\| (\d+)/(\d+) \[.*?lr=([\d.e-]+)[],]"
    return [
        (int(epoch) * int(total) + int(step) - 1, 2 * int(total), float(lr))
        for epoch, step, total, lr in re.findall(bar, output.replace("\r", "\n"))
    ]


@pytest.mark.parametrize("accumulation", [1, 4])
@pytest.mark.parametrize("processes", [1, 2])
def test_the_schedule_counts_optimizer_steps(
    processes, accumulation, arguments, capfd, in_two_processes
):
    batch_size = 8 // accumulation // processes
    arguments += ["--accumulation", str(accumulation), "--batch_size", str(batch_size)]
    arguments += ["--num_warmup_steps", "5", "--lr", "0.004"]
    if processes == 1:
        train.main(arguments)
        shown = rates(capfd.readouterr().err)
    else:
        shown = rates(in_two_processes(*arguments))
    assert {step for step, *_ in shown} >= {shown[0][1] // 2 - 1, shown[0][1] - 1}
    for step, total, lr in shown:
        expected = 0.004 * (step / 5 if step < 5 else (total - step) / (total - 5))
        assert lr == pytest.approx(expected, rel=0.01)


def test_a_step_that_overflowed_does_not_move_the_schedule(arguments, tmp_path, monkeypatch):
    begin, forward = train.start, Model.forward

    def loud_forward(*inputs, **named):
        outputs = forward(*inputs, **named)
        if outputs.loss is not None:
            outputs.loss = outputs.loss * 64
        return outputs

    def start_with_a_scaler(*place):
        accelerator = begin(*place)
        accelerator.scaler = torch.amp.GradScaler("cpu", init_scale=2.0**127)
        return accelerator

    monkeypatch.setattr(train, "start", start_with_a_scaler)
    monkeypatch.setattr(Model, "forward", loud_forward)
    train.main([*arguments, "--max_steps", "10"])
    state = json.loads((tmp_path / "run" / "last" / "training_state.json").read_text())
    skipped = state["step"] - state["scheduler_steps"]
    assert state["step"] == 10
    assert 0 < skipped < 10
    assert state["scaler"]["scale"] == 2.0 ** (127 - skipped)
    train.main(["--restore_dir", str(tmp_path / "run" / "last"), "--max_steps", "11"])
    state = json.loads((tmp_path / "run" / "last" / "training_state.json").read_text())
    assert state["scaler"]["scale"] <= 2.0 ** (127 - skipped)  # a new one would begin at 2^127


def test_two_processes_stop_and_go_on(arguments, tmp_path, in_two_processes):
    whole, run = tmp_path / "whole", tmp_path / "run"
    arguments += ["--batch_size", "4", "--lr_scheduler_type", "constant"]
    in_two_processes(*arguments, "--max_steps", "12", "--outdir", str(whole))
    in_two_processes(*arguments, "--max_steps", "8")
    output = in_two_processes("--restore_dir", str(run / "last"), "--max_steps", "12")
    assert "--max_steps is now 12; it was 8" in output
    for tensors, expected in zip(result(run)[:2], result(whole)[:2], strict=True):
        assert tensors.keys() == expected.keys()
        for name, tensor in tensors.items():
            assert torch.equal(tensor, expected[name]), name


def test_another_number_of_processes_gives_the_same_result(
    arguments, sample, tmp_path, in_two_processes
):
    arguments += ["--model_id", str(sample / "tiny"), "--lr_scheduler_type", "constant"]
    train.main([*arguments, "--max_steps", "12", "--outdir", str(tmp_path / "whole")])
    last = str(tmp_path / "run" / "last")
    train.main([*arguments, "--max_steps", "4", "--batch_size", "4", "--accumulation", "2"])
    in_two_processes("--restore_dir", last, "--max_steps", "9")
    train.main(["--restore_dir", last, "--max_steps", "12", "--batch_size", "3"])
    # Not each weight: Adam makes whole steps of gradients that are zero but for rounding.
    *_, log, state = result(tmp_path / "run")
    *_, expected_log, expected_state = result(tmp_path / "whole")
    for epoch, entry in expected_log.items():
        for part in ("train_log", "valid_log"):
            assert log[epoch][part]["loss"] == pytest.approx(entry[part]["loss"], rel=1e-4)
    for place in ("step", "current_epoch", "examples", "train_items", "scheduler_steps"):
        assert state[place] == expected_state[place]


def announce_tokenizing(cache, _) -> None:
    """Let a process say when it tokenizes, beginning with the cache of `datasets` at `cache`."""
    datasets.config.HF_DATASETS_CACHE = cache
    call = PreTrainedTokenizerBase.__call__

    def announcing(*args, **kwargs):
        print("TOKENIZING", flush=True)
        return call(*args, **kwargs)

    PreTrainedTokenizerBase.__call__ = announcing


def test_texts_are_tokenized_once(arguments, tmp_path):
    patch = partial(announce_tokenizing, tmp_path / "cache")
    arguments += ["--max_steps", "1"]
    run = Run(arguments, tmp_path / "first", processes=2, patch=patch)
    assert run.wait() == [0, 0]
    assert "TOKENIZING" in run.output(0)
    assert "TOKENIZING" not in run.output(1)
    again = Run([*arguments, "--outdir", str(tmp_path / "again")], tmp_path / "second", patch=patch)
    assert again.wait() == [0]
    assert "TOKENIZING" not in again.output()
