"""Other optimizers: their full state is saved, and NaN never reaches the weights."""

from collections.abc import Iterator
from contextlib import contextmanager
from functools import partial

import pytest

from helpers import seams
from helpers.assertions import assert_equal_tensors, read_result, read_state, read_weights
from helpers.model_folder import files_of_model_in
from helpers.processes import Launch

pytestmark = pytest.mark.proof

KINDS = ["adaptive", "counting"]


def with_optimizer(kind: str):
    return files_of_model_in(f"optimizers/{kind}", also_own=True)


@pytest.mark.parametrize("processes", [1, 2])
@pytest.mark.parametrize("kind", KINDS)
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
    assert any(whole.state["optimizer"].values())  # there are numbers to save


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
