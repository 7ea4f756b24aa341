"""If memory runs out, a run uses smaller micro-batches and keeps its global batches."""

from functools import partial

import pytest

import train
from helpers import seams
from helpers.assertions import read_result
from helpers.processes import Launch

pytestmark = pytest.mark.proof


@pytest.mark.parametrize(("processes", "rank"), [(1, 0), (2, 1)])
def test_smaller_micro_batches_give_the_same_losses(processes, rank, arguments, sample, tmp_path):
    arguments += ["--batch_size", str(8 // processes), "--lr_scheduler_type", "constant"]
    arguments += ["--model_id", str(sample / "tiny"), "--epochs", "1"]
    train.main([*arguments, "--batch_size", "8", "--outdir", str(tmp_path / "whole")])
    patch = partial(seams.memory_for, 2, (rank,))
    output = Launch(arguments, tmp_path / "output", processes, patch).expect()
    size = 8 // processes
    note = f"out of memory with --batch_size {size}: micro-batches have at most 2 examples"
    assert output.count(note) == 1
    result, expected = read_result(tmp_path / "run"), read_result(tmp_path / "whole")
    for part in ("train_log", "valid_log"):
        loss = expected.log["Epoch 0"][part]["loss"]
        assert result.log["Epoch 0"][part]["loss"] == pytest.approx(loss, rel=1e-4)
    assert result.state["step"] == expected.state["step"]
    last = ["--restore_dir", str(tmp_path / "run" / "last"), "--epochs", "2"]
    Launch(last, tmp_path / "output of resume").expect()


def test_run_is_refused_if_one_example_does_not_fit_into_memory(arguments, tmp_path):
    patch = partial(seams.memory_for, 0, (0,))
    output = Launch(arguments, tmp_path / "output", patch=patch).expect(2)
    assert "out of memory with 1 of the longest examples" in output
    assert "Traceback" not in output
    assert not (tmp_path / "run" / "last").exists()
