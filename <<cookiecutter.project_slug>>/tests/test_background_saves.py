"""A thread writes checkpoints while training continues."""

import signal
from functools import partial
from pathlib import Path

import pytest
import torch
from torch import nn

import train
import training.checkpoint
from helpers import seams
from helpers.assertions import (
    assert_bit_identical,
    assert_equal_tensors,
    read_state,
    read_weights,
)
from helpers.processes import Launch
from training import atomic
from training.staging import bytes_to_copy, live_memory, stage

pytestmark = pytest.mark.proof


def test_training_continues_while_a_save_is_written(arguments, steps, tmp_path, uninterrupted):
    arguments += ["--batch_size", "4"]
    patch = partial(seams.first_best_written_after, steps + 2)
    Launch(arguments, tmp_path / "output", 2, patch).expect()
    assert_bit_identical(tmp_path / "run", uninterrupted(arguments, 2))


def test_a_save_has_the_weights_of_its_step(arguments, steps, tmp_path):
    """The checkpoint is written only after training has changed the weights."""
    one_epoch = ["--max_steps", str(steps), "--lr_scheduler_type", "constant"]
    train.main([*arguments, *one_epoch, "--outdir", str(tmp_path / "expected")])
    with (
        seams.first_best_written_after(steps + 2),
        seams.killed_before_micro_batch(steps + 3),
        pytest.raises(seams.Killed),
    ):
        train.main([*arguments, "--lr_scheduler_type", "constant"])
    for name in ("best", "last"):
        assert read_state(tmp_path / "run" / name)["step"] == steps
        expected = read_weights(tmp_path / "expected" / name)
        assert_equal_tensors(read_weights(tmp_path / "run" / name), expected)


def test_kill_while_a_save_is_written_keeps_the_previous_save(
    arguments, steps, tmp_path, uninterrupted
):
    run = tmp_path / "run"
    patch = partial(seams.killed_while_writing, steps + 2)
    Launch(arguments, tmp_path / "output", patch=patch).expect(-signal.SIGKILL)
    assert (run / atomic.STORE / "last.1.tmp" / "optimizer.safetensors").is_file()
    assert atomic.find_fault(run / "last") is None
    state = read_state(run / "last")
    assert (state["step"], state["log"]) == (steps, {})  # saved before the validation
    Launch([*arguments, "--restore_dir", "auto"], tmp_path / "resumed").expect()
    assert_bit_identical(run, uninterrupted(arguments))


@pytest.mark.parametrize("processes", [1, 2])
def test_failed_write_ends_the_run_and_keeps_the_previous_save(processes, arguments, tmp_path):
    endless = [*arguments, "--max_steps", "1000000", "--save_steps", "500000", "--epochs", "1"]
    endless += ["--valid_steps", "2", "--batch_size", str(8 // processes)]
    patch = partial(seams.full_disk_at_save, 1)
    output = Launch(endless, tmp_path / "output", processes, patch).expect(2)
    assert output.count("not saved ([Errno 28] No space left on device)") == 1
    assert "Traceback" not in output
    assert atomic.find_fault(tmp_path / "run" / "last") is None
    assert read_state(tmp_path / "run" / "last")["log"] == {}


def test_too_little_memory_for_a_copy_is_reported_and_changes_no_result(
    arguments, tmp_path, uninterrupted, monkeypatch, capsys
):
    monkeypatch.setattr(training.checkpoint, "free_memory", lambda: 1000)
    train.main(arguments)
    assert capsys.readouterr().out.count("1,000 bytes of host memory are free") == 1
    assert_bit_identical(tmp_path / "run", uninterrupted(arguments))


def test_kill_before_the_first_validation_loses_no_step(arguments, steps, tmp_path, uninterrupted):
    with pytest.raises(seams.Killed), seams.killed_before_validation():
        train.main(arguments)
    assert read_state(tmp_path / "run" / "last")["step"] == steps
    train.main([*arguments, "--restore_dir", "auto"])
    assert_bit_identical(tmp_path / "run", uninterrupted(arguments))


def test_staged_tensors_share_no_memory_with_the_training_state():
    model = nn.Sequential(nn.Linear(2, 2), nn.BatchNorm1d(2))
    optimizer = torch.optim.AdamW(model.parameters())
    model(torch.ones(2, 2)).sum().backward()
    optimizer.step()
    tensors = {**model.state_dict(), "moment": optimizer.state[model[0].weight]["exp_avg"]}
    live = live_memory(model, optimizer)
    before = {name: tensor.clone() for name, tensor in tensors.items()}
    assert bytes_to_copy(tensors.values(), live) == sum(t.nbytes for t in tensors.values())
    stage(tensors, live)
    assert bytes_to_copy(tensors.values(), live) == 0
    kept = dict(tensors)
    stage(tensors, live)
    assert all(tensors[name] is kept[name] for name in kept)
    model(torch.ones(2, 2)).sum().backward()
    optimizer.step()
    assert_equal_tensors(tensors, before)


def test_a_resumed_run_verifies_the_checksums_only_once(arguments, tmp_path, monkeypatch):
    train.main([*arguments, "--max_steps", "1"])
    compared: list[Path] = []
    find_fault = atomic.find_fault

    def counting(folder: Path) -> str | None:
        compared.append(folder)
        return find_fault(folder)

    monkeypatch.setattr(atomic, "find_fault", counting)
    train.main([*arguments, "--restore_dir", "auto", "--max_steps", "2"])
    assert compared == [tmp_path / "run" / "last"]
