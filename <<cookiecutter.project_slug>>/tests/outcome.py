"""What a run has come to, bit for bit."""

import json
from pathlib import Path

import torch
from safetensors.torch import load_file


def result(folder: Path) -> tuple[dict, dict, dict, dict]:
    """All that a run is judged by, times aside."""
    log = json.loads((folder / "log.json").read_text())
    state = json.loads((folder / "last" / "training_state.json").read_text())
    for entry in [*log.values(), *state["log"].values()]:
        entry.pop("seconds")
    state["args"].pop("outdir")
    state.pop("run_id")
    weights = load_file(folder / "last" / "model.safetensors")
    return weights, load_file(folder / "last" / "optimizer.safetensors"), log, state


def assert_same(one: Path, other: Path) -> None:
    weights, moments, log, state = result(one)
    other_weights, other_moments, other_log, other_state = result(other)
    for tensors, others in ((weights, other_weights), (moments, other_moments)):
        assert tensors.keys() == others.keys()
        for name, tensor in tensors.items():
            assert torch.equal(tensor, others[name]), name
    assert (log, state) == (other_log, other_state)
