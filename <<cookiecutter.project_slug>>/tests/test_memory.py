"""Out of memory: a run goes on with smaller forward passes, and the same global batches."""

import os
from contextlib import ExitStack
from functools import partial
from unittest import mock

import pytest
import torch

import train
from model.modeling import Model
from outcome import result
from real_runs import Run
from scaling import memory


def small_memory(most: int, ranks: tuple[int, ...], stack: ExitStack) -> None:
    """Let the devices of some processes hold the forward pass of a few examples only."""
    stack.enter_context(mock.patch.object(memory, "UNTRIED", set()))
    forward = Model.forward

    def bounded(self, input_ids, **named):
        if self.training and len(input_ids) > most and int(os.environ.get("RANK", 0)) in ranks:
            raise torch.OutOfMemoryError("CUDA out of memory")
        return forward(self, input_ids, **named)

    stack.enter_context(mock.patch.object(Model, "forward", bounded))


@pytest.mark.parametrize(("processes", "rank"), [(1, 0), (2, 1)])
def test_smaller_passes_give_the_same_result(processes, rank, arguments, sample, tmp_path):
    arguments += ["--batch_size", str(8 // processes), "--lr_scheduler_type", "constant"]
    arguments += ["--model_id", str(sample / "tiny"), "--epochs", "1"]
    train.main([*arguments, "--batch_size", "8", "--outdir", str(tmp_path / "whole")])
    run = Run(arguments, tmp_path / "output", processes, partial(small_memory, 2, (rank,)))
    assert run.wait() == [0] * processes, run.output()
    told = f"--batch_size {8 // processes}: it is 2 now, and --accumulation is {4 // processes}"
    assert run.output().count(told) == 1
    *_, log, state = result(tmp_path / "run")
    *_, expected_log, expected_state = result(tmp_path / "whole")
    for part in ("train_log", "valid_log"):
        loss = expected_log["Epoch 0"][part]["loss"]
        assert log["Epoch 0"][part]["loss"] == pytest.approx(loss, rel=1e-4)
    assert state["step"] == expected_state["step"]
    assert state["args"]["batch_size"] == 2
    again = Run(["--restore_dir", str(tmp_path / "run" / "last"), "--epochs", "2"], tmp_path / "2")
    assert again.wait() == [0], again.output()


def test_one_example_that_does_not_fit_is_refused(arguments, tmp_path):
    run = Run(arguments, tmp_path / "output", patch=partial(small_memory, 0, (0,)))
    assert run.wait() == [2]
    assert "out of memory with one of the longest texts" in run.output()
    assert "Traceback" not in run.output()
    assert not (tmp_path / "run" / "last").exists()
