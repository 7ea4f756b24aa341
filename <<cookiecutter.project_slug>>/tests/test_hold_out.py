"""Without `--valid_input`, some examples of `--train_input` are held out for validation."""

import json

import numpy as np
import pytest
import torch
from safetensors.torch import load_file

import train
from errors import RunError
from training.contract import ExampleSet
from training.hold_out import hold_out


class Numbers:
    """A data set of numbers, each of which occurs twice."""

    def __init__(self, count: int):
        self.values = [index // 2 for index in range(count)]

    def __len__(self) -> int:
        return len(self.values)

    def __getitem__(self, index: int) -> dict:
        return {"value": self.values[index]}


def values(examples: ExampleSet) -> list[int]:
    return [example["value"] for example in examples.fetch(list(range(len(examples))))]


@pytest.mark.parametrize("share", [0.1, 0.5])
def test_equal_values_are_in_the_same_part_and_parts_have_the_requested_sizes(share):
    numbers = Numbers(8000)
    whole = ExampleSet(numbers)
    rest, held_out = hold_out(whole, share, seed=0)
    assert sorted(values(rest) + values(held_out)) == sorted(numbers.values)
    assert not set(values(rest)) & set(values(held_out))
    # The tolerance is four standard deviations, for 4000 independent values.
    assert abs(len(held_out) / 8000 - share) < 4 * np.sqrt(share * (1 - share) / 4000)
    assert values(hold_out(whole, share, seed=1)[1]) != values(held_out)


def test_held_out_examples_do_not_depend_on_the_order_of_the_data():
    whole = Numbers(200)
    backwards = Numbers(200)
    backwards.values.reverse()
    _, first = hold_out(ExampleSet(whole), 0.2, seed=3)
    _, second = hold_out(ExampleSet(backwards), 0.2, seed=3)
    assert sorted(values(first)) == sorted(values(second))


def test_size_that_leaves_a_part_empty_is_refused():
    with pytest.raises(RunError, match="--valid_size 0.0 of 8 examples leaves a part empty"):
        hold_out(ExampleSet(Numbers(8)), 0.0, seed=0)


def test_run_validates_on_held_out_rows_and_resumes(arguments, tmp_path, capfd):
    alone = [a for a in arguments if a not in ("--valid_input", arguments[3])]
    alone += ["--valid_size", "0.3", "--lr_scheduler_type", "constant", "--max_steps"]
    train.main([*alone, "4", "--outdir", str(tmp_path / "whole")])
    assert "examples of --train_input are held out" in capfd.readouterr().out
    train.main([*alone, "2"])
    train.main(["--restore_dir", str(tmp_path / "run" / "last"), "--max_steps", "4"])
    logs = [json.loads((tmp_path / run / "log.json").read_text()) for run in ("whole", "run")]
    counts = {entry["valid_log"]["count"] for log in logs for entry in log.values()}
    assert len(counts) == 1
    weights = [load_file(tmp_path / run / "last" / "model.safetensors") for run in ("whole", "run")]
    assert all(torch.equal(weights[1][name], tensor) for name, tensor in weights[0].items())
