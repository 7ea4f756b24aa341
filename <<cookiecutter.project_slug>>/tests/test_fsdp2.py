"""FSDP2 on two CPU processes: resume, faults, memory, and checkpoints for any other strategy."""

from functools import partial

import pytest
import torch
from launching import shard
from outcome import result
from real_runs import Run
from safetensors.torch import load_file

import train
from test_divergence import poison
from test_memory import small_memory


def test_a_stopped_run_ends_as_if_it_had_not_been(in_two, steps, tmp_path):
    constant = ("--lr_scheduler_type", "constant", "--max_steps")
    in_two("whole", *constant, str(steps + 4), patch=shard)
    in_two("run", *constant, str(steps + 2), patch=shard)
    in_two(
        "run",
        *constant,
        str(steps + 4),
        "--restore_dir",
        str(tmp_path / "run" / "last"),
        patch=shard,
    )
    for tensors, expected in zip(
        result(tmp_path / "run")[:2], result(tmp_path / "whole")[:2], strict=True
    ):
        assert all(torch.equal(tensor, expected[name]) for name, tensor in tensors.items())


def test_a_checkpoint_fits_every_strategy(in_two, arguments, sample, steps, tmp_path):
    """Saved by FSDP2, gone on with by DDP, then by one process, then by FSDP2 again."""
    arguments += ["--model_id", str(sample / "tiny")]
    last = ("--lr_scheduler_type", "constant", "--restore_dir", str(tmp_path / "run" / "last"))
    in_two("whole", "--lr_scheduler_type", "constant", "--max_steps", str(steps + 4))
    in_two("run", "--lr_scheduler_type", "constant", "--max_steps", "2", patch=shard)
    in_two("run", *last, "--max_steps", "4")
    train.main([*last, "--max_steps", str(steps + 2), "--batch_size", "8"])
    in_two("run", *last, "--max_steps", str(steps + 4), patch=shard)
    *_, log, state = result(tmp_path / "run")
    *_, expected_log, expected_state = result(tmp_path / "whole")
    assert state["step"] == expected_state["step"] == steps + 4
    entry = list(log.values())[-1]["valid_log"]
    assert entry["loss"] == pytest.approx(
        list(expected_log.values())[-1]["valid_log"]["loss"], 1e-3
    )


def test_a_bad_step_does_not_reach_the_weights(arguments, steps, tmp_path):
    arguments += ["--batch_size", "4", "--lr_scheduler_type", "constant"]
    before = [*arguments, "--max_steps", str(steps + 2), "--outdir", str(tmp_path / "before")]
    assert Run(before, tmp_path / "output", 2, shard).wait() == [0, 0]
    bad = partial(shard, then=partial(poison, "gradient", 1, steps + 2))
    run = Run(arguments, tmp_path / "output", 2, bad)
    assert run.wait() == [2, 2], run.output()
    expected = load_file(tmp_path / "before" / "last" / "model.safetensors")
    weights = load_file(tmp_path / "run" / "bad_batch" / "model.safetensors")
    assert all(torch.equal(weights[name], tensor) for name, tensor in expected.items())


def test_bfloat16_keeps_float32_weights_and_goes_on_with_them(in_two, tmp_path):
    half = partial(shard, precision="bf16")
    constant = ("--lr_scheduler_type", "constant", "--max_steps")
    in_two("whole", *constant, "6", patch=half)
    in_two("exact", *constant, "6", patch=shard)
    in_two("run", *constant, "3", patch=half)
    in_two("run", *constant, "6", "--restore_dir", str(tmp_path / "run" / "last"), patch=half)
    weights, whole, exact = (
        load_file(tmp_path / name / "last" / "model.safetensors")
        for name in ("run", "whole", "exact")
    )
    assert {tensor.dtype for tensor in weights.values()} == {torch.float32}
    assert all(torch.equal(tensor, whole[name]) for name, tensor in weights.items())
    assert not all(torch.equal(tensor, exact[name]) for name, tensor in weights.items())


def test_out_of_memory_halves_the_passes_of_all(in_two, tmp_path):
    """All try the same examples: with only one out of memory, the others would wait for it."""
    patch = partial(shard, then=partial(small_memory, 2, (0, 1)))
    assert "--batch_size 4: it is 2 now" in in_two("run", "--max_steps", "3", patch=patch)
