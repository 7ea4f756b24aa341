"""Models with frozen parameters, and with parameters that some or all steps do not use."""

import json
import random
from functools import partial

import pytest

from errors import REFUSED
from helpers.assertions import assert_equal_tensors, read_result, read_state
from helpers.model_folder import files_of_model_in
from helpers.processes import Launch
from skipping.modeling import LAST_USE

pytestmark = pytest.mark.proof

PARTLY = partial(files_of_model_in, "partly_trained", "least_contract")


@pytest.fixture
def partly_arguments(tmp_path) -> list[str]:
    draw = random.Random(0)
    for name in ("train", "valid"):
        rows = [[draw.uniform(-1, 1) for _ in range(4)] for _ in range(40)]
        text = "".join(json.dumps(row) + "\n" for row in rows)
        (tmp_path / f"{name}.jsonl").write_text(text)
    (tmp_path / "base").mkdir()
    return [
        *("--train_input", str(tmp_path / "train.jsonl")),
        *("--valid_input", str(tmp_path / "valid.jsonl")),
        *("--model_id", str(tmp_path / "base"), "--lr_scheduler_type", "constant"),
        *("--epochs", "3"),
    ]


# With one process, the run stops before the first use of `expert`; with two, after this use.
@pytest.mark.parametrize(("processes", "stop"), [(1, 3), (2, 12)])
def test_partly_trained_model_resumes_bit_identically(processes, stop, partly_arguments, tmp_path):
    arguments = [*partly_arguments, "--batch_size", str(8 // processes)]
    runs = [
        ("whole", ["--max_steps", "15"]),
        ("run", ["--max_steps", str(stop)]),
        ("run", ["--max_steps", "15", "--restore_dir", str(tmp_path / "run" / "last")]),
    ]
    for number, (name, more) in enumerate(runs):
        both = [*arguments, "--outdir", str(tmp_path / name), *more]
        Launch(both, tmp_path / f"output{number}", processes, PARTLY).expect()
    result, whole = read_result(tmp_path / "run"), read_result(tmp_path / "whole")
    names = {key.rpartition("/")[0] for key in whole.moments}
    assert not any(name.startswith(("frozen", "unused")) for name in names)
    assert "expert.weight" in names
    assert_equal_tensors(result.weights, whole.weights)
    assert_equal_tensors(result.moments, whole.moments)


def test_unused_parameters_are_reported(partly_arguments, tmp_path):
    arguments = [*partly_arguments, "--outdir", str(tmp_path / "run"), "--max_steps", "1"]
    output = Launch(arguments, tmp_path / "output", 1, PARTLY).expect()
    assert "4 parameters get no gradient from some examples: unused.weight, unused.bias" in output
    assert "expert.weight" in output


def skipping_arguments(tmp_path, partly_arguments, processes: int) -> list[str]:
    size = ["--batch_size", str(8 // processes), "--save_steps", "1"]
    return [*partly_arguments, *size, "--outdir", str(tmp_path / f"run{processes}")]


def test_parameter_that_a_later_step_does_not_use_is_an_error_with_two_processes(
    partly_arguments, tmp_path
):
    patch = partial(files_of_model_in, "skipping", "least_contract")
    arguments = skipping_arguments(tmp_path, partly_arguments, 2)
    run = Launch(arguments, tmp_path / "output", 2, patch)
    assert run.wait() == [REFUSED, REFUSED]
    sentence = "model/modeling.py: body.weight gets no gradient in this step"
    assert sentence in run.output(0) and "leaves_parameters_unused = True" in run.output(0)
    assert "Traceback" not in run.output(0) + run.output(1)
    assert read_state(tmp_path / "run2" / "last")["step"] < LAST_USE


@pytest.mark.parametrize("kind", ["declared", "at_random"])
def test_models_that_skip_parameters_are_trained_in_two_processes(kind, partly_arguments, tmp_path):
    patch = partial(files_of_model_in, f"skipping/{kind}", "least_contract")
    output = Launch(
        skipping_arguments(tmp_path, partly_arguments, 2), tmp_path / "output", 2, patch
    ).expect()
    assert ("parameters get no gradient from some examples" in output) == (kind == "at_random")
