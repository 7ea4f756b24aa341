"""An error in model/ after the first step ends the run with one sentence; last/ is kept."""

import json
from contextlib import closing
from functools import partial

import pytest
import torch
from accelerate import Accelerator

import train
from errors import INTERRUPTED, REFUSED, DataError, RankError
from failing.dataset import generate_dataset
from failing.labels import IN_COMPUTE, IN_FORWARD, IN_LOADING, IN_UPDATE
from helpers.assertions import read_state
from helpers.model_folder import files_of_model_in
from helpers.processes import Launch
from training.batches import Batches
from training.contract import ExampleSet
from training.launch import run
from training.user_code import at_place

FAILING = partial(files_of_model_in, "failing", "least_contract")
ROW = 30
ROWS = 40
SENTENCES = {
    IN_LOADING: r"epoch 0, step \d, examples .*30.* model/dataset.py: .*KeyError: 'column'",
    IN_FORWARD: r"epoch 0, step \d, examples .*30.*: IndexError: Target 200 is out of bounds",
    IN_UPDATE: r"validation, step 3, examples .*30.*: ValueError: a label of 300",
    IN_COMPUTE: "validation: ZeroDivisionError",
}


@pytest.fixture
def failing_arguments(tmp_path):
    """Return a function that returns the arguments of a run.

    The run fails because one row has the given label.
    """

    def arguments(label: float, processes: int) -> list[str]:
        for name, is_bad in (("train", label <= IN_FORWARD), ("valid", label >= IN_UPDATE)):
            rows = [[row / ROWS, 0.5, 0.5, 0.5] for row in range(ROWS)]
            rows[ROW][3] = label if is_bad else 0.5
            text = "".join(json.dumps(row) + "\n" for row in rows)
            (tmp_path / f"{name}.jsonl").write_text(text)
        (tmp_path / "base").mkdir()
        return [
            *("--train_input", str(tmp_path / "train.jsonl")),
            *("--valid_input", str(tmp_path / "valid.jsonl")),
            *("--model_id", str(tmp_path / "base"), "--outdir", str(tmp_path / "run")),
            *("--batch_size", str(4 // processes), "--eval_batch_size", str(8 // processes)),
            *("--epochs", "1", "--save_steps", "1", "--seed", "7"),
        ]

    return arguments


@pytest.mark.parametrize("label", list(SENTENCES))
def test_error_after_the_first_step_contains_its_place(label, failing_arguments, tmp_path):
    with FAILING(), pytest.raises(RankError, match=SENTENCES[label]) as caught:
        train.main(failing_arguments(label, 1))
    assert "\n" not in str(caught.value)
    assert read_state(tmp_path / "run" / "last")["step"] > 0


@pytest.mark.proof
def test_error_in_a_loader_process_contains_step_and_examples(failing_arguments):
    _, path, *_ = failing_arguments(IN_LOADING, 1)
    batches = Batches(ExampleSet(generate_dataset(path)), Accelerator(), 4, seed=7, num_workers=1)
    done = 0
    with pytest.raises(RankError, match=SENTENCES[IN_LOADING]), closing(batches.steps()) as steps:
        for step in steps:
            done += len(list(step.micro_batches))
    batches.close()
    assert done == 7  # micro-batches loaded before the error are yielded


@pytest.mark.proof
@pytest.mark.parametrize("label", list(SENTENCES))
def test_error_on_one_rank_also_ends_the_other_rank(label, failing_arguments, tmp_path):
    launch = Launch(failing_arguments(label, 2), tmp_path / "output", 2, FAILING)
    assert launch.wait() == [REFUSED, REFUSED]
    outputs = [launch.output(rank) for rank in range(2)]
    assert "Traceback" not in "".join(outputs)
    place = SENTENCES[label].partition(",")[0]
    assert any(f": rank {rank}: {place}" in text for rank, text in enumerate(outputs))


@pytest.mark.parametrize(
    ("error", "sentence"),
    [
        (torch.OutOfMemoryError("CUDA out of memory."), "expected a lower --batch_size"),
        (RuntimeError("CUDA error: device-side assert triggered"), "index is out of range"),
        (RuntimeError("third_party/gloo: Connection closed"), "connection to another process"),
        (RankError("epoch 1, step 2: KeyError"), "rank 1: epoch 1, step 2: KeyError"),
    ],
)
def test_error_is_printed_by_the_rank_on_which_it_occurs(error, sentence, monkeypatch, capsys):
    monkeypatch.setenv("RANK", "1")
    monkeypatch.setenv("LOCAL_RANK", "1")

    def fail():
        raise error

    assert run(fail) == REFUSED
    assert sentence in capsys.readouterr().err


def test_error_in_the_data_does_not_mention_the_model():
    with (
        pytest.raises(RankError, match=r"epoch 0, step 3, examples 7 \(0-based\): row 7: no text$"),
        at_place("epoch 0, step 3", [7]),
    ):
        raise DataError("row 7: no text")


def test_unhandled_ctrl_c_gives_a_message_and_exit_code_130(capsys):
    def interrupted() -> None:
        raise KeyboardInterrupt

    assert run(interrupted) == INTERRUPTED
    assert capsys.readouterr().err.endswith(": interrupted\n")
