"""Read and compare the output of runs."""

import json
from pathlib import Path
from typing import Any, NamedTuple

import torch
from safetensors.torch import load_file
from torch import Tensor

from training.optimizer_state import OptimizerState
from training.state import OPTIMIZER_FILE, STATE_FILE

WEIGHTS_FILE = "model.safetensors"
ADAPTER_FILE = "adapter_model.safetensors"


class Result(NamedTuple):
    """Weights, optimizer state and training state of last/, and the content of log.json.

    Times, speed, output directory and run id are omitted.
    """

    weights: dict[str, Tensor]
    moments: dict[str, Tensor]
    log: dict[str, Any]
    state: dict[str, Any]


def read_state(folder: Path) -> dict[str, Any]:
    """Read `training_state.json` of a checkpoint."""
    return json.loads((folder / STATE_FILE).read_text(encoding="utf-8"))


def read_log(outdir: Path) -> dict[str, Any]:
    return json.loads((outdir / "log.json").read_text(encoding="utf-8"))


def read_weights(folder: Path) -> dict[str, Tensor]:
    """Read the weights of a checkpoint or an adapter."""
    adapter = folder / ADAPTER_FILE
    return load_file(adapter if adapter.exists() else folder / WEIGHTS_FILE)


def read_result(outdir: Path) -> Result:
    log = read_log(outdir)
    state = read_state(outdir / "last")
    for entry in [*log.values(), *state["log"].values()]:
        entry.pop("seconds")
        entry.pop("speed")
    state["args"].pop("outdir")
    state.pop("run_id")
    optimizer = OptimizerState.load(outdir / "last" / OPTIMIZER_FILE)
    state["optimizer"] = {"numbers": optimizer.numbers, "groups": optimizer.groups}
    return Result(read_weights(outdir / "last"), optimizer.tensors, log, state)


def assert_equal_tensors(tensors: dict[str, Tensor], expected: dict[str, Tensor]) -> None:
    assert tensors.keys() == expected.keys()
    for name, tensor in tensors.items():
        assert tensor.dtype == expected[name].dtype, name
        assert torch.equal(tensor, expected[name]), name


def assert_bit_identical(outdir: Path, other: Path) -> None:
    """Check that two runs have the same `Result`; the tensors have to be bit-identical."""
    result, expected = read_result(outdir), read_result(other)
    assert_equal_tensors(result.weights, expected.weights)
    assert_equal_tensors(result.moments, expected.moments)
    assert result.log == expected.log
    assert result.state == expected.state
