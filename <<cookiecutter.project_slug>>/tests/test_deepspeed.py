"""DeepSpeed's ZeRO-2 and ZeRO-3 compute what one process does, and go on with its checkpoints."""

import importlib.util
import json
import os
import shutil
from contextlib import ExitStack
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
from model.modeling import Model
from outcome import assert_same, result
from real_runs import ROOT, Run
from test_divergence import poison_late

pytestmark = pytest.mark.skipif(
    importlib.util.find_spec("deepspeed") is None or shutil.which("c++") is None,
    reason="needs DeepSpeed, and a C++ compiler for what it builds to run without GPUs",
)


def launch(stage: int, precision: str, stack: ExitStack) -> None:
    """Do what `accelerate launch --config_file configs/zeroN.yaml` does, without GPUs."""
    config = ["--config_file", str(ROOT / "configs" / f"zero{stage}.yaml")]
    command = [*config, "--num_processes", "2", "--mixed_precision", precision, "train.py"]
    with mock.patch.object(launcher, "deepspeed_launcher") as start:
        launcher.launch_command(launcher.launch_command_parser().parse_args(command))
    environment = prepare_deepspeed_cmd_env(*start.call_args.args)[1]
    os.environ.update({k: v for k, v in environment.items() if k.startswith("ACCELERATE_")})
    # Accelerate knows of DeepSpeed on accelerators only; DeepSpeed itself does not mind.
    os.environ.update(ACCELERATE_USE_CPU="false", DS_ACCELERATOR="cpu")
    backend = mock.Mock(return_value=("gloo", DistributedType.MULTI_CPU))
    stack.enter_context(mock.patch.object(PartialState, "_prepare_backend", backend))


def launch_poisoned(stage: int, step: int, stack: ExitStack) -> None:
    launch(stage, "no", stack)
    poison_late("gradient", 1, step, stack)


@pytest.fixture
def with_zero(tmp_path):
    def run(stage: int, *arguments: str, precision: str = "no") -> None:
        output = tmp_path / f"output{next(numbers)}"
        both = Run(list(arguments), output, 2, partial(launch, stage, precision))
        assert both.wait() == [0, 0], both.output() + both.output(1)

    numbers = count()
    return run


def losses(log: dict) -> list[float]:
    return [entry[part]["loss"] for entry in log.values() for part in ("train_log", "valid_log")]


@pytest.mark.parametrize("stage", [2, 3])
def test_a_run_goes_on_with_and_without_zero(stage, arguments, sample, tmp_path, with_zero):
    arguments += ["--model_id", str(sample / "tiny"), "--lr_scheduler_type", "constant"]
    split = [*arguments, "--batch_size", "2", "--accumulation", "2"]
    runs = {name: tmp_path / name for name in ("expected", "whole", "stopped", "mixed")}
    train.main([*arguments, "--max_steps", "12", "--outdir", str(runs["expected"])])
    with_zero(stage, *split, "--max_steps", "12", "--outdir", str(runs["whole"]))
    with_zero(stage, *split, "--max_steps", "4", "--outdir", str(runs["stopped"]))
    shutil.copytree(runs["stopped"], runs["mixed"])

    with_zero(stage, "--restore_dir", str(runs["stopped"] / "last"), "--max_steps", "12")
    assert_same(runs["stopped"], runs["whole"])

    last = ["--restore_dir", str(runs["mixed"] / "last")]
    train.main([*last, "--max_steps", "9", "--batch_size", "4"])
    with_zero(stage, *last, "--max_steps", "12")
    _, expected_moments, expected_log, _ = result(runs["expected"])
    for name in ("whole", "mixed"):
        _, moments, log, _ = result(runs[name])
        assert losses(log) == pytest.approx(losses(expected_log), rel=1e-5), name
        assert moments.keys() == expected_moments.keys()
        size = max(m.norm() for key, m in expected_moments.items() if key.endswith("exp_avg"))
        for key, expected in expected_moments.items():
            assert (moments[key] - expected).norm() <= 1e-4 * size, (name, key)
    assert Model.from_pretrained(runs["whole"] / "best").dtype == torch.float32


@pytest.mark.parametrize("stage", [2, 3])
def test_a_bad_step_does_not_reach_the_weights(stage, arguments, steps, tmp_path):
    arguments += ["--batch_size", "4", "--save_steps", str(steps + 2)]
    patch = partial(launch_poisoned, stage, steps + 2)
    run = Run(arguments, tmp_path / "output", 2, patch)
    assert run.wait() == [2, 2], run.output()
    weights = Model.from_pretrained(tmp_path / "run" / "bad_batch").state_dict()
    expected = Model.from_pretrained(tmp_path / "run" / "last").state_dict()
    assert all(torch.equal(weights[name], tensor) for name, tensor in expected.items())
    state = json.loads((tmp_path / "run" / "last" / "training_state.json").read_text())
    assert state["step"] == steps + 2
