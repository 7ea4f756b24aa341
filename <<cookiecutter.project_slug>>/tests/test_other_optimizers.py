"""The full state of an optimizer of model/ is saved, and NaN never reaches the weights."""

from collections.abc import Iterator
from contextlib import contextmanager
from functools import partial

import pytest
import torch
from torch.optim import SGD
from torch.optim.lr_scheduler import LambdaLR, ReduceLROnPlateau

import train
from errors import RunError
from helpers import seams
from helpers.assertions import assert_equal_tensors, read_result, read_state, read_weights
from helpers.model_folder import files_of_model_in
from helpers.processes import Launch
from training.contract import Task
from training.optimization import check_optimizer, check_scheduler

pytestmark = pytest.mark.proof

KINDS = ["adaptive", "counting"]


def with_optimizer(kind: str):
    return files_of_model_in(f"optimizers/{kind}", also_own=True)


@pytest.mark.parametrize(("kind", "processes"), [("adaptive", 2), ("counting", 1)])
def test_resumed_run_is_bit_identical_with_another_optimizer(kind, processes, arguments, tmp_path):
    arguments += ["--batch_size", str(8 // processes), "--lr_scheduler_type", "constant"]
    runs = [
        ("whole", ["--max_steps", "9"]),
        ("run", ["--max_steps", "4"]),
        ("run", ["--max_steps", "9", "--restore_dir", str(tmp_path / "run" / "last")]),
    ]
    patch = partial(with_optimizer, kind)
    for number, (name, more) in enumerate(runs):
        both = [*arguments, "--outdir", str(tmp_path / name), *more]
        Launch(both, tmp_path / f"output{number}", processes, patch).expect()
    result, whole = read_result(tmp_path / "run"), read_result(tmp_path / "whole")
    assert_equal_tensors(result.weights, whole.weights)
    assert_equal_tensors(result.moments, whole.moments)
    assert result.state["optimizer"] == whole.state["optimizer"]
    assert any(whole.state["optimizer"].values())  # the optimizer has numbers to save


@contextmanager
def with_nan(kind: str, how: str, step: int) -> Iterator[None]:
    with with_optimizer(kind), seams.nonfinite_step(how, 0, step, is_read_late=True):
        yield


@pytest.mark.parametrize("how", ["loss", "gradient", "loss alone"])
@pytest.mark.parametrize("kind", KINDS)
def test_nonfinite_step_leaves_weights_unchanged_with_an_optimizer_that_is_not_fused(
    kind, how, arguments, steps, tmp_path
):
    arguments += ["--save_steps", str(steps + 2)]
    patch = partial(with_nan, kind, how, steps + 2)
    output = Launch(arguments, tmp_path / "output", 1, patch).expect(2)
    assert "epoch 1, step 2: the loss or its gradient is not finite" in output
    assert read_state(tmp_path / "run" / "last")["step"] == steps + 2
    weights = read_weights(tmp_path / "run" / "bad_batch")
    assert_equal_tensors(weights, read_weights(tmp_path / "run" / "last"))


@pytest.mark.parametrize(
    ("build", "sentence"),
    [
        (lambda model: None, "returns NoneType; expected a torch.optim.Optimizer"),
        (lambda model: SGD([model.weight]), r"bias requires a gradient and is .* 0 times"),
        (lambda model: SGD([model.weight, model.weight, model.bias]), "weight .* 2 times"),
        (
            lambda model: SGD([*model.parameters(), torch.zeros(3)]),
            r"of shape \(3,\) that is not in",
        ),
    ],
)
@pytest.mark.filterwarnings("ignore:optimizer contains a parameter group with duplicate")
def test_invalid_return_value_of_build_optimizer_is_refused(build, sentence):
    model = torch.nn.Linear(2, 1)
    with pytest.raises(RunError, match=sentence):
        check_optimizer(build(model), model)


def test_invalid_return_value_of_build_scheduler_is_refused():
    optimizer = SGD([torch.nn.Parameter(torch.ones(1))])
    check_scheduler(LambdaLR(optimizer, lambda step: 1.0))
    for other in (ReduceLROnPlateau(optimizer), lambda step: 1.0):
        with pytest.raises(RunError, match=r"build_scheduler returns \w+; expected a torch"):
            check_scheduler(other)


def test_unused_lr_scheduler_type_is_reported(arguments, monkeypatch, capsys):
    class WithSchedule(Task):
        def __init__(self) -> None:
            super().__init__()
            self.build_scheduler = lambda optimizer, *_: LambdaLR(optimizer, lambda step: 1.0)

    monkeypatch.setattr(train, "Task", WithSchedule)
    train.main([*arguments, "--max_steps", "1", "--lr_scheduler_type", "cosine"])
    assert "--lr_scheduler_type cosine is not used" in capsys.readouterr().out
