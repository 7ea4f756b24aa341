"""A loss or a gradient that is not finite ends a run before it reaches the weights."""

import json
import os
from contextlib import ExitStack
from functools import partial
from unittest import mock

import pytest
import torch
from safetensors.torch import load_file

import train
from errors import RunError
from model.dataset import generate_dataset
from model.modeling import Model
from real_runs import Run
from training import losses
from training.files import find_fault


def poison(how: str, rank: int, step: int, stack: ExitStack) -> None:
    """Spoil one step of one process: its loss, or its gradient alone, or its loss alone."""
    if os.environ.get("RANK", "0") != str(rank):
        return
    forward, passes = Model.forward, iter(range(1000))

    def poisoned(self, *inputs, **named):
        outputs = forward(self, *inputs, **named)
        if self.training and next(passes) == step:
            if how == "loss":
                outputs.loss = outputs.loss * torch.inf
            elif how == "gradient":  # the square root has none at zero
                outputs.loss = outputs.loss + (outputs.loss * 0).sqrt()
            else:
                outputs.loss = outputs.loss + torch.tensor(torch.nan)
        return outputs

    stack.enter_context(mock.patch.object(Model, "forward", poisoned))


def poison_late(how: str, rank: int, step: int, stack: ExitStack) -> None:
    """Read losses as late as on an accelerator: some steps have been done since the bad one."""
    stack.enter_context(mock.patch.dict(losses.READ_EVERY, {"cpu": 4}))
    poison(how, rank, step, stack)


@pytest.mark.parametrize("how", ["loss", "gradient", "loss alone"])
@pytest.mark.parametrize(("processes", "rank"), [(1, 0), (2, 1)])
@pytest.mark.parametrize("patch", [poison, poison_late])
def test_a_run_ends_before_its_weights_are_spoiled(
    how, processes, rank, patch, arguments, steps, tmp_path
):
    arguments += ["--batch_size", str(8 // processes), "--lr_scheduler_type", "constant"]
    before = [*arguments, "--max_steps", str(steps + 2), "--outdir", str(tmp_path / "before")]
    assert Run(before, tmp_path / "output", processes).wait() == [0] * processes
    run = Run(arguments, tmp_path / "output", processes, partial(patch, how, rank, steps + 2))
    assert run.wait() == [2] * processes, run.output()
    assert run.output().count("epoch 1, step 2: the loss or its gradient is not a finite") == 1
    assert "Traceback" not in run.output()
    expected = load_file(tmp_path / "before" / "last" / "model.safetensors")
    weights = load_file(tmp_path / "run" / "bad_batch" / "model.safetensors")
    assert all(torch.equal(weights[name], tensor) for name, tensor in expected.items())
    for folder in ("best", "last"):
        assert find_fault(tmp_path / "run" / folder) is None
        state = json.loads((tmp_path / "run" / folder / "training_state.json").read_text())
        assert state["step"] == steps


def test_nothing_is_saved_between_a_bad_step_and_the_end(arguments, steps, tmp_path):
    arguments += ["--save_steps", "1"]
    run = Run(arguments, tmp_path / "output", patch=partial(poison_late, "gradient", 0, steps + 2))
    assert run.wait() == [2], run.output()
    state = json.loads((tmp_path / "run" / "last" / "training_state.json").read_text())
    assert state["step"] == steps + 2


def test_the_bad_batch_reproduces_it(arguments, tmp_path, monkeypatch, tokenizer):
    dataset = generate_dataset(arguments[1], tokenizer, 48)
    victim = 17
    ids = dataset[victim]["input_ids"]
    forward = Model.forward

    def poisoned(self, input_ids, *inputs, **named):
        outputs = forward(self, input_ids, *inputs, **named)
        for row in input_ids:
            if self.training and torch.equal(row[: len(ids)], ids):
                outputs.loss = outputs.loss * torch.nan
        return outputs

    monkeypatch.setattr(Model, "forward", poisoned)
    with pytest.raises(RunError, match="not a finite number"):
        train.main(arguments)
    bad = tmp_path / "run" / "bad_batch"
    about = json.loads((bad / "batch.json").read_text())
    assert about["epoch"] == 0
    assert victim in about["examples"]
    assert len(about["examples"]) == 8
    model = Model.from_pretrained(bad).train()
    assert model(**load_file(bad / "batch.safetensors")).loss.isnan()


def test_a_learning_rate_that_is_far_too_high_is_noticed(arguments, tmp_path):
    with pytest.raises(RunError, match="not a finite number"):
        train.main([*arguments, "--lr", "1e30"])
    weights = load_file(tmp_path / "run" / "bad_batch" / "model.safetensors")
    assert all(tensor.isfinite().all() for tensor in weights.values())
