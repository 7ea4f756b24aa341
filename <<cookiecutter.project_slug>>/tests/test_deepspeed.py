"""Up to rounding, ZeRO gives the results of one process. Runs resume with and without ZeRO."""

import importlib.util
import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from functools import partial
from itertools import count
from unittest import mock

import pytest
import torch
from accelerate.commands import launch as launcher
from accelerate.state import PartialState
from accelerate.utils import DistributedType
from accelerate.utils.launch import prepare_deepspeed_cmd_env

import train
from helpers import seams
from helpers.assertions import (
    assert_bit_identical,
    assert_equal_tensors,
    read_result,
    read_state,
    read_weights,
)
from helpers.launch_env import CONFIGS
from helpers.processes import Launch, Patch
from model.modeling import Model

pytestmark = [
    pytest.mark.proof,
    pytest.mark.skipif(
        importlib.util.find_spec("deepspeed") is None or shutil.which("c++") is None,
        reason="needs DeepSpeed, and a C++ compiler for its CPU extensions",
    ),
]


@contextmanager
def zero(stage: int, precision: str = "no", also: Patch = nullcontext) -> Iterator[None]:
    """Set up the process as a launch with configs/zeroN.yaml does, but without GPUs.

    Args:
        also: A further patch: see `Launch`.
    """
    config = ["--config_file", str(CONFIGS / f"zero{stage}.yaml")]
    command = [*config, "--num_processes", "2", "--mixed_precision", precision, "train.py"]
    with mock.patch.object(launcher, "deepspeed_launcher") as start:
        launcher.launch_command(launcher.launch_command_parser().parse_args(command))
    environment = prepare_deepspeed_cmd_env(*start.call_args.args)[1]
    os.environ.update({k: v for k, v in environment.items() if k.startswith("ACCELERATE_")})
    # Accelerate uses DeepSpeed only on accelerators; DeepSpeed itself also supports CPUs.
    os.environ.update(ACCELERATE_USE_CPU="false", DS_ACCELERATOR="cpu")
    backend = mock.Mock(return_value=("gloo", DistributedType.MULTI_CPU))
    with mock.patch.object(PartialState, "_prepare_backend", backend), also():
        yield


@pytest.fixture
def with_zero(tmp_path):
    def run(stage: int, *arguments: str) -> None:
        output = tmp_path / f"output{next(numbers)}"
        Launch(list(arguments), output, 2, partial(zero, stage)).expect()

    numbers = count()
    return run


def losses(log: dict) -> list[float]:
    return [entry[part]["loss"] for entry in log.values() for part in ("train_log", "valid_log")]


@pytest.mark.parametrize("stage", [2, 3])
def test_run_resumes_with_and_without_zero(stage, arguments, sample, tmp_path, with_zero):
    arguments += ["--model_id", str(sample / "tiny"), "--lr_scheduler_type", "constant"]
    split = [*arguments, "--batch_size", "2", "--accumulation", "2"]
    runs = {name: tmp_path / name for name in ("expected", "whole", "stopped", "mixed")}
    train.main([*arguments, "--max_steps", "12", "--outdir", str(runs["expected"])])
    with_zero(stage, *split, "--max_steps", "12", "--outdir", str(runs["whole"]))
    with_zero(stage, *split, "--max_steps", "4", "--outdir", str(runs["stopped"]))
    shutil.copytree(runs["stopped"], runs["mixed"])

    with_zero(stage, "--restore_dir", str(runs["stopped"] / "last"), "--max_steps", "12")
    assert_bit_identical(runs["stopped"], runs["whole"])

    last = ["--restore_dir", str(runs["mixed"] / "last")]
    train.main([*last, "--max_steps", "9", "--batch_size", "4"])
    with_zero(stage, *last, "--max_steps", "12")
    expected = read_result(runs["expected"])
    size = max(m.norm() for key, m in expected.moments.items() if key.endswith("exp_avg"))
    for name in ("whole", "mixed"):
        result = read_result(runs[name])
        assert losses(result.log) == pytest.approx(losses(expected.log), rel=1e-5), name
        assert result.moments.keys() == expected.moments.keys()
        for key, moment in expected.moments.items():
            assert (result.moments[key] - moment).norm() <= 1e-4 * size, (name, key)
    assert Model.from_pretrained(runs["whole"] / "best").dtype == torch.float32


@pytest.mark.parametrize("stage", [2, 3])
def test_nonfinite_step_leaves_weights_unchanged_under_zero(stage, arguments, steps, tmp_path):
    arguments += ["--batch_size", "4", "--save_steps", str(steps + 2)]
    also = partial(seams.nonfinite_step, "gradient", 1, steps + 2, is_read_late=True)
    Launch(arguments, tmp_path / "output", 2, partial(zero, stage, also=also)).expect(2)
    weights = read_weights(tmp_path / "run" / "bad_batch")
    assert_equal_tensors(weights, read_weights(tmp_path / "run" / "last"))
    assert read_state(tmp_path / "run" / "last")["step"] == steps + 2
