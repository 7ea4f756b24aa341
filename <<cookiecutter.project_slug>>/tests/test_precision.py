"""Half precision computes, float32 learns."""

import os
from contextlib import ExitStack

import pytest
import torch
from safetensors.torch import load_file, save_file
from transformers import AutoConfig

import train
from outcome import assert_same, result
from real_runs import Run

BASE = "base"


def in_bfloat16(stack: ExitStack) -> None:
    os.environ["ACCELERATE_MIXED_PRECISION"] = "bf16"


def test_bfloat16_computes_and_goes_on_bit_for_bit(arguments, tmp_path):
    arguments += ["--lr_scheduler_type", "constant"]
    train.main([*arguments, "--outdir", str(tmp_path / "exact")])
    runs = [
        [*arguments, "--outdir", str(tmp_path / "whole")],
        [*arguments, "--epochs", "1"],
        ["--restore_dir", str(tmp_path / "run" / "last"), "--epochs", "2"],
    ]
    for more in runs:
        run = Run(more, tmp_path / "output", patch=in_bfloat16)
        assert run.wait() == [0], run.output()
    assert_same(tmp_path / "run", tmp_path / "whole")
    (weights, moments, log, _), (exact, *_) = (result(tmp_path / n) for n in ("run", "exact"))
    assert {tensor.dtype for tensor in [*weights.values(), *moments.values()]} == {torch.float32}
    assert not all(torch.equal(tensor, exact[name]) for name, tensor in weights.items())
    losses = [entry["valid_log"]["loss"] for entry in log.values()]
    assert losses[1] < losses[0]


def test_a_base_model_in_bfloat16_is_trained_in_float32(arguments, sample, tmp_path):
    """transformers alone would keep it in bfloat16, where small steps change nothing."""
    train.main([*arguments, "--max_steps", "1", "--outdir", str(tmp_path / "first")])
    weights = load_file(tmp_path / "first" / "last" / "model.safetensors")
    base = tmp_path / BASE
    base.mkdir()
    for file in (sample / "tiny").iterdir():
        (base / file.name).write_bytes(file.read_bytes())
    AutoConfig.from_pretrained(sample / "tiny", dtype="bfloat16").save_pretrained(base)
    body = {name.split(".", 1)[1]: w.bfloat16() for name, w in weights.items() if "." in name}
    save_file(body, base / "model.safetensors", {"format": "pt"})
    train.main([*arguments, "--model_id", str(base), "--lr", "1e-5", "--max_steps", "2"])
    learned, moments, *_ = result(tmp_path / "run")
    assert {tensor.dtype for tensor in learned.values()} == {torch.float32}
    changes = [
        (learned[name] - tensor.bfloat16().float()).abs().max()
        for name, tensor in weights.items()
        if f"{name}/exp_avg" in moments and tensor.ndim == 2 and "classifier" not in name
    ]
    assert min(changes) > 0
    assert max(changes) < 1e-4  # they are those of the base model, and learn by small steps


@pytest.mark.parametrize(("flag", "precision"), [([], "highest"), (["--tf32"], "high")])
def test_tf32_is_a_choice(flag, precision, arguments, monkeypatch):
    torch.set_float32_matmul_precision("highest")
    train.main([*arguments, "--max_steps", "1", *flag])
    assert torch.get_float32_matmul_precision() == precision
    torch.set_float32_matmul_precision("highest")
