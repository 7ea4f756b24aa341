"""`--dry_run` prints data, schedule, memory and disk space, and writes nothing."""

import os
import shutil
from collections import namedtuple

import pytest

import train
from errors import RunError
from helpers.processes import Launch

Usage = namedtuple("Usage", "total used free")


def test_dry_run_prints_data_schedule_and_memory_and_writes_nothing(arguments, tmp_path, capsys):
    train.main([*arguments, "--dry_run"])
    shown = capsys.readouterr().out
    for part in ("train:", "valid:", "tokens:", "steps:", "padding"):
        assert part in shown
    for part in ("learning rate:", "model:", "memory:", "disk:"):
        assert part in shown
    assert os.listdir(tmp_path) == []


@pytest.mark.proof
def test_dry_run_in_two_processes_prints_once_and_writes_nothing(arguments, tmp_path):
    arguments += ["--dry_run", "--report_to", "tensorboard"]
    output = Launch(arguments, tmp_path / "output", processes=2).expect()
    assert output.count("learning rate:") == 1
    assert os.listdir(tmp_path) == ["output"]


@pytest.mark.proof
def test_dry_run_fails_if_checkpoints_would_not_fit_on_the_disk(arguments, monkeypatch):
    monkeypatch.setattr(shutil, "disk_usage", lambda _: Usage(10, 10, 1000))
    with pytest.raises(RunError, match="are free; the checkpoints need"):
        train.main([*arguments, "--dry_run"])
