"""Without float16, a loss or gradient that is not finite ends a run before the weights change."""

import json
from functools import partial

import pytest
import torch
from safetensors.torch import load_file

import train
from errors import RunError
from helpers import seams
from helpers.assertions import assert_equal_tensors, read_state, read_weights
from helpers.processes import Launch
from model.dataset import generate_dataset
from model.modeling import Model
from training.atomic import find_fault

pytestmark = pytest.mark.proof


@pytest.mark.parametrize("how", ["loss", "gradient", "loss alone"])
@pytest.mark.parametrize(("processes", "rank"), [(1, 0), (2, 1)])
@pytest.mark.parametrize("is_read_late", [False, True])
def test_nonfinite_step_leaves_weights_unchanged(
    how, processes, rank, is_read_late, arguments, steps, tmp_path, uninterrupted
):
    arguments += ["--batch_size", str(8 // processes), "--lr_scheduler_type", "constant"]
    before = uninterrupted([*arguments, "--max_steps", str(steps + 2)], processes)
    patch = partial(seams.nonfinite_step, how, rank, steps + 2, is_read_late)
    output = Launch(arguments, tmp_path / "output", processes, patch).expect(2)
    assert output.count("epoch 1, step 2: the loss or its gradient is not finite") == 1
    assert "Traceback" not in output
    bad = read_weights(tmp_path / "run" / "bad_batch")
    assert_equal_tensors(bad, read_weights(before / "last"))
    for folder in ("best", "last"):
        assert find_fault(tmp_path / "run" / folder) is None
        assert read_state(tmp_path / "run" / folder)["step"] == steps


def test_last_is_not_saved_after_a_nonfinite_step(arguments, steps, tmp_path):
    arguments += ["--save_steps", "1"]
    patch = partial(seams.nonfinite_step, "gradient", 0, steps + 2, is_read_late=True)
    Launch(arguments, tmp_path / "output", patch=patch).expect(2)
    assert read_state(tmp_path / "run" / "last")["step"] == steps + 2


def test_bad_batch_reproduces_a_nan_loss(arguments, tmp_path, monkeypatch, tokenizer):
    dataset = generate_dataset(arguments[1], tokenizer, 48)
    victim = 17
    ids = dataset[victim]["input_ids"]
    forward = Model.forward

    def forward_with_nan(self, input_ids, *inputs, **named):
        outputs = forward(self, input_ids, *inputs, **named)
        for row in input_ids:
            if self.training and torch.equal(row[: len(ids)], ids):
                outputs.loss = outputs.loss * torch.nan
        return outputs

    monkeypatch.setattr(Model, "forward", forward_with_nan)
    with pytest.raises(RunError, match="is not finite"):
        train.main(arguments)
    bad = tmp_path / "run" / "bad_batch"
    about = json.loads((bad / "batch.json").read_text())
    assert about["epoch"] == 0
    assert victim in about["examples"]
    assert len(about["examples"]) == 8
    model = Model.from_pretrained(bad).train()
    assert model(**load_file(bad / "batch.safetensors")).loss.isnan()


def test_bad_batch_of_a_diverged_run_has_finite_weights(arguments, tmp_path):
    with pytest.raises(RunError, match="is not finite"):
        train.main([*arguments, "--lr", "1e30"])
    weights = read_weights(tmp_path / "run" / "bad_batch")
    assert all(tensor.isfinite().all() for tensor in weights.values())
