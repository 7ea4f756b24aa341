"""A model/ with only the required parts can be trained, and its runs resume bit-identically."""

import importlib
import json
import random
import signal
import time
from functools import partial
from types import SimpleNamespace
from typing import Any

import pytest
from torch import nn

import train
from errors import REFUSED, RunError
from helpers.assertions import assert_bit_identical, read_log
from helpers.model_folder import TESTS, files_of_model_in
from helpers.processes import TIMEOUT, Launch

LEAST = partial(files_of_model_in, "least_contract")


@pytest.fixture
def least_arguments(tmp_path) -> list[str]:
    draw = random.Random(0)
    for name, count in (("train", 40), ("valid", 12)):
        rows = [[round(draw.uniform(-1, 1), 3) for _ in range(4)] for _ in range(count)]
        text = "".join(json.dumps([*row[:3], sum(row[:3])]) + "\n" for row in rows)
        (tmp_path / f"{name}.jsonl").write_text(text)
    (tmp_path / "base").mkdir()
    return [
        *("--train_input", str(tmp_path / "train.jsonl")),
        *("--valid_input", str(tmp_path / "valid.jsonl")),
        *("--model_id", str(tmp_path / "base"), "--outdir", str(tmp_path / "run")),
        *("--batch_size", "4", "--epochs", "4", "--save_steps", "1"),
    ]


def test_model_and_data_set_of_the_least_contract_have_at_most_40_lines():
    files = [TESTS / "least_contract" / name for name in ("modeling.py", "dataset.py")]
    lines = [line for file in files for line in file.read_text().splitlines() if line.strip()]
    assert len(lines) <= 40


def test_least_contract_lowers_its_loss(least_arguments, tmp_path, capsys):
    with LEAST():
        train.main(least_arguments)
    losses = [entry["valid_log"]["loss"] for entry in read_log(tmp_path / "run").values()]
    assert losses[-1] < losses[0]
    assert (tmp_path / "run" / "best" / "model.safetensors").is_file()
    assert "the loss is treated as a mean over each micro-batch" in capsys.readouterr().out


@pytest.mark.proof
@pytest.mark.parametrize("processes", [1, 2])
def test_least_contract_resumes_bit_identically_after_sigkill(
    processes, least_arguments, tmp_path, uninterrupted
):
    arguments = [*least_arguments, "--restore_dir", "auto", "--epochs", "5"]
    run = Launch(arguments, tmp_path / "killed", processes, LEAST)
    until = time.monotonic() + TIMEOUT
    while not (tmp_path / "run" / "last").exists():
        assert time.monotonic() < until, run.output()
        time.sleep(0.001)
    run.kill()
    assert run.processes[0].exitcode == -signal.SIGKILL
    Launch(arguments, tmp_path / "resumed", processes, LEAST).expect()
    whole = [*arguments, "--outdir", str(tmp_path / "whole")]
    Launch(whole, tmp_path / "output", processes, LEAST).expect()
    assert_bit_identical(tmp_path / "run", tmp_path / "whole")


def test_save_pretrained_that_ignores_state_dict_is_refused(least_arguments, monkeypatch, tmp_path):
    """Otherwise a thread would save the weights of the model while training changes them."""
    with LEAST():
        from model.modeling import Model

        save = Model.save_pretrained
        monkeypatch.setattr(
            Model, "save_pretrained", lambda self, folder, state_dict=None: save(self, folder)
        )
        with pytest.raises(RunError, match="saves the model's own .*, not that of its argument"):
            train.main(least_arguments)
    assert not (tmp_path / "run").exists()


def test_model_that_is_not_a_pretrained_model_is_refused(least_arguments, monkeypatch, tmp_path):
    class Plain(nn.Module):
        def __init__(self, config: Any):
            super().__init__()
            self.head = nn.Linear(3, 1)

        def forward(self, inputs: Any, labels: Any) -> Any:
            return SimpleNamespace(loss=(self.head(inputs)[:, 0] - labels).square().mean())

    with LEAST():
        monkeypatch.setattr(importlib.import_module("model.modeling"), "Model", Plain)
        with pytest.raises(RunError, match="expected a subclass of transformers.PreTrainedModel"):
            train.main(least_arguments)
    assert not (tmp_path / "run").exists()


@pytest.mark.proof
def test_predict_py_without_a_predictor_is_refused(least_arguments, tmp_path):
    with LEAST():
        train.main(least_arguments)
    arguments = ["--checkpoint", str(tmp_path / "run" / "best"), "--input", least_arguments[1]]
    output = Launch(arguments, tmp_path / "output", 1, LEAST, "predict").expect(REFUSED)
    assert "no class Predictor" in output
