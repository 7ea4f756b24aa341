"""Mixed precision computes in 16 bits; weights and optimizer state stay in float32."""

from functools import partial

import pytest
import torch
from safetensors.torch import load_file, save_file
from transformers import AutoConfig

import train
from helpers.assertions import (
    WEIGHTS_FILE,
    assert_bit_identical,
    read_result,
    read_weights,
)
from helpers.launch_env import variables
from helpers.processes import Launch

pytestmark = pytest.mark.proof

IN_BFLOAT16 = partial(variables, ACCELERATE_MIXED_PRECISION="bf16")


def test_resumed_run_is_bit_identical_in_bfloat16(arguments, tmp_path):
    arguments += ["--lr_scheduler_type", "constant"]
    train.main([*arguments, "--outdir", str(tmp_path / "exact")])
    runs = [
        [*arguments, "--outdir", str(tmp_path / "whole")],
        [*arguments, "--epochs", "1"],
        ["--restore_dir", str(tmp_path / "run" / "last"), "--epochs", "2"],
    ]
    for more in runs:
        Launch(more, tmp_path / "output", patch=IN_BFLOAT16).expect()
    assert_bit_identical(tmp_path / "run", tmp_path / "whole")
    result, exact = read_result(tmp_path / "run"), read_result(tmp_path / "exact")
    tensors = [*result.weights.values(), *result.moments.values()]
    assert {tensor.dtype for tensor in tensors} == {torch.float32}
    weights = result.weights.items()
    assert not all(torch.equal(tensor, exact.weights[name]) for name, tensor in weights)
    losses = [entry["valid_log"]["loss"] for entry in result.log.values()]
    assert losses[1] < losses[0]


def test_base_model_in_bfloat16_is_trained_in_float32(arguments, sample, tmp_path):
    """In bfloat16, the dtype that transformers would load, small updates do not change a weight."""
    train.main([*arguments, "--max_steps", "1", "--outdir", str(tmp_path / "first")])
    base = tmp_path / "base"
    base.mkdir()
    for file in (sample / "tiny").iterdir():
        (base / file.name).write_bytes(file.read_bytes())
    AutoConfig.from_pretrained(tmp_path / "first" / "best", dtype="bfloat16").save_pretrained(base)
    weights = read_weights(tmp_path / "first" / "last")
    halved = {name: weight.bfloat16() for name, weight in weights.items()}
    save_file(halved, base / WEIGHTS_FILE, {"format": "pt"})
    train.main([*arguments, "--model_id", str(base), "--lr", "1e-5", "--max_steps", "2"])
    learned, moments, *_ = read_result(tmp_path / "run")
    assert {tensor.dtype for tensor in learned.values()} == {torch.float32}
    names = {key.rpartition("/")[0].split(".", 1)[1] for key in moments}
    trained = [n for n, tensor in weights.items() if n in names and tensor.ndim == 2]
    assert trained
    base_weights = load_file(base / WEIGHTS_FILE)
    changes = [(learned[name] - base_weights[name].float()).abs().max() for name in trained]
    assert min(changes) > 0
    assert max(changes) < 1e-4  # training started from the weights of the base model


@pytest.mark.parametrize(("flag", "precision"), [([], "highest"), (["--tf32"], "high")])
def test_tf32_is_used_only_if_requested(flag, precision, arguments, monkeypatch):
    torch.set_float32_matmul_precision("highest")
    train.main([*arguments, "--max_steps", "1", *flag])
    assert torch.get_float32_matmul_precision() == precision
    torch.set_float32_matmul_precision("highest")
