"""FSDP2 in two processes on CPUs: results, resuming, errors, memory and checkpoints."""

from functools import partial

import pytest
import torch

import train
from helpers import seams
from helpers.assertions import (
    assert_equal_tensors,
    read_result,
    read_weights,
)
from helpers.launch_env import fsdp2
from helpers.processes import Launch
from model.modeling import Model

pytestmark = pytest.mark.proof

CONSTANT = ("--lr_scheduler_type", "constant", "--max_steps")


def test_fsdp2_has_the_shapes_and_losses_of_ddp(in_two_processes, tmp_path):
    output = in_two_processes("sharded", patch=fsdp2)
    assert "SHARDED: 0" not in output and "SHARDED" in output
    in_two_processes("ddp")
    *parts, log, _ = read_result(tmp_path / "sharded")
    *expected_parts, expected_log, _ = read_result(tmp_path / "ddp")
    for tensors, expected in zip(parts, expected_parts, strict=True):
        assert {k: v.shape for k, v in tensors.items()} == {k: v.shape for k, v in expected.items()}
    for epoch, entry in expected_log.items():
        for part in ("train_log", "valid_log"):
            assert log[epoch][part] == pytest.approx(entry[part], rel=1e-4)
    model = Model.from_pretrained(tmp_path / "sharded" / "best")
    assert all(p.dtype == torch.float32 for p in model.parameters())


def test_resumed_run_is_bit_identical_under_fsdp2(in_two_processes, steps, tmp_path):
    last = ("--restore_dir", str(tmp_path / "run" / "last"))
    in_two_processes("whole", *CONSTANT, str(steps + 4), patch=fsdp2)
    in_two_processes("run", *CONSTANT, str(steps + 2), patch=fsdp2)
    in_two_processes("run", *CONSTANT, str(steps + 4), *last, patch=fsdp2)
    result, expected = read_result(tmp_path / "run"), read_result(tmp_path / "whole")
    assert_equal_tensors(result.weights, expected.weights)
    assert_equal_tensors(result.moments, expected.moments)


def test_checkpoint_resumes_under_ddp_in_one_process_and_under_fsdp2(
    in_two_processes, arguments, sample, steps, tmp_path
):
    """Save under FSDP2, resume under DDP, then in one process, then under FSDP2 again."""
    arguments += ["--model_id", str(sample / "tiny"), "--lr_scheduler_type", "constant"]
    last = ("--restore_dir", str(tmp_path / "run" / "last"), "--max_steps")
    in_two_processes("whole", "--max_steps", str(steps + 4))
    in_two_processes("run", "--max_steps", "2", patch=fsdp2)
    in_two_processes("run", *last, "4")
    train.main([*last, str(steps + 2), "--batch_size", "8"])
    in_two_processes("run", *last, str(steps + 4), patch=fsdp2)
    result, expected = read_result(tmp_path / "run"), read_result(tmp_path / "whole")
    assert result.state["step"] == expected.state["step"] == steps + 4
    loss = list(expected.log.values())[-1]["valid_log"]["loss"]
    assert list(result.log.values())[-1]["valid_log"]["loss"] == pytest.approx(loss, 1e-3)


def test_nonfinite_step_leaves_weights_unchanged_under_fsdp2(
    in_two_processes, arguments, steps, tmp_path
):
    in_two_processes("before", *CONSTANT, str(steps + 2), patch=fsdp2)
    also = partial(seams.nonfinite_step, "gradient", 1, steps + 2)
    arguments += ["--batch_size", "4", "--lr_scheduler_type", "constant"]
    Launch(arguments, tmp_path / "output", 2, partial(fsdp2, also=also)).expect(2)
    expected = read_weights(tmp_path / "before" / "last")
    assert_equal_tensors(read_weights(tmp_path / "run" / "bad_batch"), expected)


def test_resumed_run_is_bit_identical_under_fsdp2_in_bfloat16(in_two_processes, tmp_path):
    half = partial(fsdp2, precision="bf16")
    last = ("--restore_dir", str(tmp_path / "run" / "last"))
    in_two_processes("whole", *CONSTANT, "6", patch=half)
    in_two_processes("exact", *CONSTANT, "6", patch=fsdp2)
    in_two_processes("run", *CONSTANT, "3", patch=half)
    in_two_processes("run", *CONSTANT, "6", *last, patch=half)
    weights, whole, exact = (
        read_weights(tmp_path / name / "last") for name in ("run", "whole", "exact")
    )
    assert {tensor.dtype for tensor in weights.values()} == {torch.float32}
    assert_equal_tensors(weights, whole)
    assert not all(torch.equal(tensor, exact[name]) for name, tensor in weights.items())


def test_out_of_memory_halves_the_micro_batches_of_all_ranks(in_two_processes):
    """All ranks try the same batch, so that no rank waits for a rank that ran out of memory."""
    patch = partial(fsdp2, also=partial(seams.memory_for, 2, (0, 1)))
    output = in_two_processes("run", "--max_steps", "3", patch=patch)
    assert "out of memory with --batch_size 4: micro-batches have at most 2 examples" in output
