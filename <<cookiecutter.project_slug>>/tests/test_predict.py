"""predict.py: predictions in the order of the input, independent of batches and processes."""

import io
import json
import os
from typing import Any

import pytest

import predict
from errors import DataError, RunError
from helpers.processes import Launch
from model.modeling import Model
from model.prediction import OPTIONS, Predictor
from training.loading import load_model, load_tokenizer

SHORT = ["--max_new_tokens", "5"] if "max_new_tokens" in OPTIONS else []


@pytest.fixture(scope="module")
def checkpoint(sample, tmp_path_factory) -> str:
    folder = tmp_path_factory.mktemp("checkpoint")
    arguments = [f"--{part}_input={sample / f'{part}.jsonl'}" for part in ("train", "valid")]
    arguments += [f"--model_id={sample / 'tiny'}", f"--outdir={folder / 'run'}"]
    Launch([*arguments, "--max_steps=2", "--max_len=48"], folder / "output").expect()
    return str(folder / "run" / "best")


def predicted(checkpoint, files, output, *arguments: str, processes: int = 1) -> list[dict]:
    output.mkdir()
    command = ["--checkpoint", checkpoint, "--input", *map(str, files), *SHORT]
    command += ["--output", str(output / "out.jsonl"), *arguments]
    Launch(command, output, processes, module="predict").expect()
    return [json.loads(line) for line in (output / "out.jsonl").read_text("utf-8").splitlines()]


def test_predictions_do_not_depend_on_batches_or_processes(checkpoint, sample, tmp_path):
    files = [sample / "valid.jsonl"]
    lines = files[0].read_text(encoding="utf-8").splitlines()
    together = predicted(checkpoint, files, tmp_path / "a", "--batch_size", "8")
    column = next(iter(together[0]))
    assert [row[column] for row in together] == [json.loads(line)[column] for line in lines]
    alone = predicted(checkpoint, files, tmp_path / "b", "--batch_size", "1")
    by_two = predicted(checkpoint, files, tmp_path / "c", "--batch_size", "4", processes=2)
    for row, other, third in zip(together, alone, by_two, strict=True):
        assert row["prediction"] == other["prediction"] == third["prediction"]
        if "scores" in row:
            assert row["scores"] == pytest.approx(other["scores"], abs=1e-5)


def test_several_files_are_predicted_in_their_order(checkpoint, sample, tmp_path):
    lines = (sample / "valid.jsonl").read_text(encoding="utf-8").splitlines()
    files = [tmp_path / "one.jsonl", tmp_path / "two.jsonl"]
    for file, part in zip(files, (lines[3:5], lines[:1]), strict=True):
        file.write_text("\n".join(part), encoding="utf-8")
    rows = predicted(checkpoint, files, tmp_path / "a")
    column = next(iter(rows[0]))
    assert [row[column] for row in rows] == [
        json.loads(line)[column] for line in (*lines[3:5], lines[0])
    ]


def test_each_line_is_answered(checkpoint, monkeypatch, capsys):
    monkeypatch.setattr("sys.stdin", io.StringIO("Do you see it?\n\n"))
    predict.main(["--checkpoint", checkpoint, *SHORT])
    answers = capsys.readouterr().out.split("> ")[1:-1]
    assert len(answers) == 2
    if not hasattr(Predictor, "start_conversation"):
        assert all("prediction" in json.loads(answer) for answer in answers)


def test_a_conversation_is_streamed_and_keeps_its_messages(checkpoint):
    if not hasattr(Predictor, "start_conversation"):
        pytest.skip("Predictor has no start_conversation")
    model = load_model(Model, checkpoint).eval()
    options = {"max_new_tokens": 8}
    predictor: Any = Predictor(model, load_tokenizer(checkpoint), 200, {}, **options)
    conversation = predictor.start_conversation()
    messages: list[dict] = []
    for line in ("Do you see it?", "No."):
        pieces: list[str] = []
        conversation.answer(line, pieces.append)
        messages.append({"role": "user", "content": line})
        (expected,) = predictor([messages])
        assert "".join(pieces) == expected["prediction"]
        messages.append({"role": "assistant", "content": expected["prediction"]})
    assert conversation.messages == messages


def test_invalid_arguments_are_refused_before_predicting(checkpoint, sample, tmp_path):
    for arguments, words in (
        (["--checkpoint", str(tmp_path / "none")], "no such folder"),
        (["--input", str(tmp_path / "none.jsonl")], "no such file"),
        (["--input", str(sample / "valid.jsonl"), "--column", "other"], "no column 'other'"),
        (["--output", str(tmp_path / "none" / "out.jsonl")], "there is no folder"),
        (["--batch_size", "0"], "expected more than 0"),
        (["--max_len", "-3"], "expected more than 0"),
        *((["--" + name, "0"], "expected more than 0") for name in OPTIONS if name != "do_sample"),
    ):
        with pytest.raises((RunError, DataError), match=words):
            predict.main(["--checkpoint", checkpoint, *arguments])
    assert os.listdir(tmp_path) == []


def test_prediction_does_not_depend_on_its_batch(checkpoint):
    model = load_model(Model, checkpoint).eval()
    options = {"max_new_tokens": 8} if "max_new_tokens" in OPTIONS else {}
    predictor = Predictor(model, load_tokenizer(checkpoint), 48, {}, **options)
    texts = [
        "Do you see it?",
        "No.",
        "She looked at him for a long while, and said nothing at all.",
    ]
    rows = [predictor([text])[0]["prediction"] for text in texts]
    assert [row["prediction"] for row in predictor(texts)] == rows
