"""Predictions are in the order of the input, and do not depend on batches or processes."""

import io
import json
import os
import re
import tracemalloc
from functools import partial
from pathlib import Path
from signal import SIGKILL
from typing import Any

import pytest
from tqdm import tqdm

import predict
from errors import DataError, RunError
from helpers import seams
from helpers.processes import Launch
from model.modeling import Model
from model.prediction import OPTIONS, Predictor
from reporting.predictions import batch_by_length, hash_rows, open_rows, predict_rows
from training.distributed import RankGroup
from training.launch import start
from training.loading import load_model, load_tokenizer
from training.output_file import OutputFile

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


@pytest.mark.proof
def test_killed_prediction_is_resumed_with_the_same_bytes(checkpoint, sample, tmp_path):
    rows = (sample / "valid.jsonl").read_text(encoding="utf-8").splitlines()
    file = tmp_path / "new.jsonl"
    file.write_text("\n".join(rows[index % len(rows)] for index in range(150)), encoding="utf-8")
    output = tmp_path / "out.jsonl"
    arguments = ["--checkpoint", checkpoint, "--input", str(file), "--batch_size", "1", *SHORT]

    def run(name: str, *more: str, code: int = 0, **options: Any) -> str:
        command = [*arguments, "--output", str(output), *more]
        return Launch(command, tmp_path / name, module="predict", **options).expect(code)

    run("whole")
    whole = output.read_bytes()
    output.write_text("an older file", encoding="utf-8")
    run("killed", patch=partial(seams.killed_in_block, 1), code=-SIGKILL)
    assert output.read_text(encoding="utf-8") == "an older file"
    assert "continues after 64 rows" in run("continued")
    assert output.read_bytes() == whole
    run("killed again", patch=partial(seams.killed_in_block, 2), code=-SIGKILL)
    other = run("with another length", "--max_len", "49")
    assert "input, checkpoint, arguments or code have changed; starting again" in other
    assert sorted(path.name for path in tmp_path.glob("out*")) == ["out.jsonl"]


def test_each_row_is_in_one_batch_with_rows_of_similar_length():
    lengths = [1, 90, 3, 100, 80, 70, 3, 95, 4, 100]
    batches = list(batch_by_length(lengths, 4))
    assert batches == [[3, 9, 7, 1], [4, 5], [8, 2, 6], [0]]
    assert list(batch_by_length([], 4)) == []


@pytest.mark.proof
def test_memory_use_does_not_grow_with_the_input(tmp_path):
    class Counter:
        columns = ["text"]

        def __call__(self, texts) -> list[dict]:
            return [{"prediction": len(text)} for text in texts]

    def peak(count: int) -> int:
        path = tmp_path / f"{count}.jsonl"
        with path.open("w", encoding="utf-8") as file:
            for number in range(count):
                file.write(json.dumps({"text": f"{number} " * 20}) + "\n")
        tracemalloc.start()
        rows = open_rows(str(path), None, Counter())
        assert hash_rows(rows())[0] == count
        output = OutputFile(tmp_path / "out.jsonl", "identity")
        output.open()
        group = RankGroup(start())
        for block in predict_rows(group, Counter(), rows, 0, 4, tqdm(disable=True)):
            output.append(block)
        output.publish()
        size = tracemalloc.get_traced_memory()[1]
        tracemalloc.stop()
        return size

    peak(500)  # the first call also measures imports
    assert peak(10_000) < 1.5 * peak(1000)


def test_several_files_are_predicted_in_the_given_order(checkpoint, sample, tmp_path):
    lines = (sample / "valid.jsonl").read_text(encoding="utf-8").splitlines()
    files = [tmp_path / "one.jsonl", tmp_path / "two.jsonl"]
    for file, part in zip(files, (lines[3:5], lines[:1]), strict=True):
        file.write_text("\n".join(part), encoding="utf-8")
    rows = predicted(checkpoint, files, tmp_path / "a")
    column = next(iter(rows[0]))
    assert [row[column] for row in rows] == [
        json.loads(line)[column] for line in (*lines[3:5], lines[0])
    ]


def test_each_line_of_the_terminal_gets_an_answer(checkpoint, monkeypatch, capsys):
    monkeypatch.setattr("sys.stdin", io.StringIO("Do you see it?\n\n"))
    predict.main(["--checkpoint", checkpoint, *SHORT])
    answers = capsys.readouterr().out.split("> ")[1:-1]
    assert len(answers) == 2
    if not hasattr(Predictor, "start_conversation"):
        assert all("prediction" in json.loads(answer) for answer in answers)


def test_answer_in_a_conversation_equals_the_prediction_for_all_its_messages(checkpoint):
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
    given = ["--input", str(sample / "valid.jsonl")]
    unusable = Path(checkpoint).parent / "unusable"
    unusable.mkdir()
    (unusable / "link").symlink_to(sample / "valid.jsonl")
    for arguments, words in (
        (["--output", str(unusable / "out.jsonl")], "out.jsonl: expected --input, too"),
        ([*given, "--output", str(unusable)], "unusable: a folder; expected a new or regular file"),
        ([*given, "--output", "/dev/null"], "/dev/null: not a regular file"),
        ([*given, "--output", str(sample / "valid.jsonl")], "is a file of --input"),
        ([*given, "--output", str(unusable / "link")], "is a file of --input"),
        (["--input", f"{sample}/v*.jsonl", "--output", given[1]], "is a file of --input"),
        (["--checkpoint", str(tmp_path / "none")], "no such folder"),
        (["--input", str(tmp_path / "none.jsonl")], "no such file"),
        (["--input", str(sample / "valid.jsonl"), "--column", "other"], "no column 'other'"),
        (["--output", str(tmp_path / "none" / "out.jsonl")], "there is no folder"),
        (["--batch_size", "0"], "expected more than 0"),
        (["--max_len", "-3"], "expected more than 0"),
    ):
        with pytest.raises((RunError, DataError), match=words):
            predict.main(["--checkpoint", checkpoint, *arguments])
    assert os.listdir(tmp_path) == []


@pytest.mark.parametrize("name", [name for name in OPTIONS if name != "do_sample"])
def test_options_of_the_predictor_must_be_positive(name, capsys):
    with pytest.raises(SystemExit):
        predict.main([f"--{name}", "0"])
    assert re.search(rf"argument --{name}: 0: expected .* (1|above 0)\n$", capsys.readouterr().err)


def test_prediction_does_not_depend_on_other_texts_of_its_batch(checkpoint):
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
