"""Each format gives the same examples. Invalid input is refused, and nothing is written."""

import gzip
import json
import shutil
import subprocess
import sys

import datasets
import pytest
import torch

import train
from conftest import ROOT
from errors import DataError, RunError
from model.dataset import OPTIONS, generate_dataset
from training.contract import Task

COLUMNS = [
    option["default"]
    for name, option in OPTIONS.items()
    if name.endswith("_column") and "default" in option
]
GOOD = dict.fromkeys(COLUMNS, "text")
FIRST, HEADER = next(iter(GOOD)), ",".join(GOOD) + "\n"
CELLS = ",".join(GOOD.values())
GAPS = "," * (len(GOOD) - 1)


def jsonl(*rows: object) -> bytes:
    return "".join(json.dumps(row) + "\n" for row in rows).encode()


@pytest.mark.parametrize(
    ("name", "content", "sentence"),
    [
        ("none.jsonl", None, "none.jsonl: no such file"),
        ("empty.jsonl", b"", "empty.jsonl: the file is empty"),
        ("blank.jsonl", b"\n\n", "blank.jsonl"),
        ("word.docx", b"text", "word.docx: unknown format"),
        ("cut.jsonl", jsonl(GOOD, GOOD) + b'{"te', "cut.jsonl:3: broken JSON"),
        ("list.jsonl", jsonl(GOOD) + b"[1]\n", "list.jsonl:2: a JSON list; expected one object"),
        ("latin.jsonl", jsonl(GOOD) + b'{"a": "caf\xe9"}\n', "latin.jsonl:2: not UTF-8"),
        ("other.jsonl", jsonl({"other": "text"}), f"other.jsonl:1: no column '{FIRST}'"),
        ("gap.jsonl", jsonl(GOOD, {}, GOOD), f"gap.jsonl:2: no value for '{FIRST}'"),
        ("null.jsonl", b"\n" + jsonl(GOOD, {**GOOD, FIRST: None}), "null.jsonl:3: no value"),
        ("nan.jsonl", jsonl({**GOOD, FIRST: float("nan")}), "nan.jsonl:1: no value"),
        (
            "mixed.jsonl",
            jsonl(GOOD, {**GOOD, FIRST: [1]}),
            f"mixed.jsonl:2: '{FIRST}' holds a list",
        ),
        ("half.jsonl", jsonl(GOOD, {**GOOD, FIRST: "\ud800"}), r"half.jsonl:2: '" + FIRST),
        (
            "twice.jsonl",
            jsonl(GOOD) + jsonl(GOOD).replace(b"{", b'{"a": 1, "a": 2, '),
            "twice.jsonl:2: broken JSON ('a' occurs twice",
        ),
        ("cut.json", json.dumps([GOOD, GOOD])[:-3].encode(), "cut.json:1: broken JSON"),
        ("late.json", b"[" + jsonl(GOOD) + b", 1]", "late.json:2: '1' in the list"),
        ("empty.csv", f"more,{HEADER}1,{CELLS}\n2,{GAPS}\n".encode(), "empty.csv:3: no value"),
        ("short.csv", f"more,{HEADER}1,{CELLS}\n1\n".encode(), "short.csv:3: 1 cells; expected"),
        ("open.csv", f'{HEADER}{CELLS}\n"a,b\n\n'.encode(), "open.csv:3: broken CSV"),
        ("twice.csv", f"{FIRST},{HEADER}a,{CELLS}\n".encode(), f"twice.csv:1: 2 columns '{FIRST}'"),
        (
            "empty.tsv",
            f"more,{HEADER}1,{CELLS}\n2,{GAPS}\n".replace(",", "\t").encode(),
            "empty.tsv:3: no value",
        ),
        (
            "quoted.tsv",
            f'{HEADER}{CELLS}\n"say ""a""",{CELLS[5:]}\n'.replace(",", "\t").encode(),
            "quoted.tsv:3: ",
        ),
        (
            "cut.jsonl.gz",
            gzip.compress(jsonl(GOOD, GOOD), mtime=0)[:-9],
            "cut.jsonl.gz: cannot be read",
        ),
        ("wide.csv", (HEADER + "1,2,3,4\n").encode(), "wide.csv:2: 4 cells; expected"),
        ("later.csv", (HEADER + ",".join(GOOD) + "\n1,2,3,4\n").encode(), "later.csv:3: 4 cells"),
        (
            "latin.csv",
            (",".join(GOOD) + "\ncaf\xe9,x\n").encode("latin-1"),
            "latin.csv:2: not UTF-8",
        ),
        ("broken.parquet", b"PAR1 and no more", "broken.parquet: cannot be read as parquet"),
    ],
)
def test_bad_file_is_refused_in_one_sentence(name, content, sentence, tmp_path, arguments):
    if content is not None:
        (tmp_path / name).write_bytes(content)
    arguments += ["--train_input", str(tmp_path / name)]
    with pytest.raises(DataError) as error:
        train.main(arguments)
    assert sentence in str(error.value)
    assert "\n" not in str(error.value)
    assert not (tmp_path / "run").exists()


def plain(example: dict) -> dict:
    """Convert the tensors of an example to lists, which can be compared."""
    return {k: v.tolist() if isinstance(v, torch.Tensor) else v for k, v in example.items()}


def test_each_format_with_columns_gives_the_same_examples(tokenizer, tmp_path):
    rows = [{column: f"{column} NA 1e5, {n}" for column in GOOD} for n in (1, 2)]
    header, cells = list(GOOD), [list(row.values()) for row in rows]
    (tmp_path / "a.jsonl").write_bytes(jsonl(*rows))
    (tmp_path / "a.json").write_text(json.dumps(rows))
    for name, separator, quote in (("a.csv", ",", '"'), ("a.tsv", "\t", "")):
        lines = [
            separator.join(f"{quote}{cell}{quote}" for cell in row) for row in [header, *cells]
        ]
        (tmp_path / name).write_text("\n".join(lines) + "\n")
    datasets.Dataset.from_list(rows).to_parquet(tmp_path / "a.parquet")
    expected = generate_dataset(tmp_path / "a.jsonl", tokenizer)
    for name in ("a.json", "a.csv", "a.tsv", "a.parquet"):
        dataset = generate_dataset(tmp_path / name, tokenizer)
        assert len(dataset) == len(expected)
        for example, other in zip(dataset, expected, strict=True):
            assert plain(example) == plain(other), name
        assert dataset.fingerprint == expected.fingerprint


def test_a_cell_may_hold_a_whole_document(tokenizer, tmp_path):
    rows = [",".join(["a"] * (len(GOOD) - 1) + ["word." * 40_000 + last]) for last in "bc"]
    (tmp_path / "long.csv").write_text(HEADER + "\n".join(rows))
    assert len(generate_dataset(tmp_path / "long.csv", tokenizer)) >= 2


@pytest.mark.proof
def test_second_process_uses_the_token_cache_of_the_first(sample):
    code = (
        "import sys; from model.dataset import generate_dataset as g; "
        "from training.loading import load_tokenizer as t; from pathlib import Path; "
        "files = g(sys.argv[1], t('tiny'), 47).rows.cache_files; "
        "print([(f['filename'], Path(f['filename']).stat().st_mtime_ns) for f in files])"
    )
    command = [sys.executable, "-c", code, str(sample / "train.jsonl")]
    first, second = (
        subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=120)
        for _ in range(2)
    )
    assert first.returncode == 0, first.stderr
    assert ".arrow" in first.stdout
    assert first.stdout == second.stdout


@pytest.mark.parametrize(
    ("extra", "sentence"),
    [
        (["--restore_dir", "data"], "data: not a checkpoint"),
        (["--restore_dir", "nowhere"], "nowhere: not a checkpoint"),
        (["--model_id", "./no-such-model"], "./no-such-model: no such folder"),
        (["--batch_size", "0"], "--batch_size 0: expected at least 1"),
        (["--max_len", "1"], "--max_len 1: expected at least 2"),
        (["--max_grad_norm", "-1"], "--max_grad_norm -1.0: expected at least 0"),
        (["--lr", "nan"], "--lr nan: expected a finite number of at least 0"),
        (["--seed", "-1"], "--seed -1: expected at least 0"),
        (["--attn_implementation", "none"], "none"),
    ],
)
def test_bad_arguments_are_refused(extra, sentence, arguments, tmp_path):
    with pytest.raises(RunError) as error:
        train.main([*arguments, *extra])
    assert sentence in str(error.value)
    assert not (tmp_path / "run").exists()


@pytest.mark.skipif(torch.accelerator.is_available(), reason="flex_attention can train on a GPU")
def test_attention_without_training_support_is_refused(arguments, tmp_path):
    with pytest.raises(
        RunError, match="flex_attention: does not support training on cpu; use sdpa"
    ):
        train.main([*arguments, "--attn_implementation", "flex_attention"])
    assert not (tmp_path / "run").exists()


def test_run_is_not_overwritten(arguments, tmp_path):
    train.main([*arguments, "--max_steps", "1"])
    before = (tmp_path / "run" / "last" / "training_state.json").read_bytes()
    with pytest.raises(RunError, match="already contains a run"):
        train.main(arguments)
    with pytest.raises(RunError, match="expected a last/, not a best/"):
        train.main(["--restore_dir", str(tmp_path / "run" / "best")])
    last = shutil.copytree(tmp_path / "run" / "last", tmp_path / "other" / "last")
    with pytest.raises(RunError, match="run: already contains a run; resume it"):
        train.main(["--restore_dir", str(last), "--outdir", str(tmp_path / "run")])
    shutil.copytree(tmp_path / "run" / "best", tmp_path / "best only" / "best")
    with pytest.raises(RunError, match="best only: already contains a run, but no last/"):
        train.main([*arguments, "--outdir", str(tmp_path / "best only"), "--restore_dir", "auto"])
    assert (tmp_path / "run" / "last" / "training_state.json").read_bytes() == before


@pytest.mark.proof
def test_invalid_input_exits_with_code_2_and_prints_one_sentence(tmp_path):
    paths = [
        "--train_input",
        "none.jsonl",
        "--valid_input",
        "none.jsonl",
        "--outdir",
        str(tmp_path / "run"),
    ]
    command = [sys.executable, "train.py", *paths]
    process = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=120)
    assert process.returncode == 2
    assert process.stderr.count("\n") == 1
    assert "none.jsonl: no such file" in process.stderr


def test_validation_data_without_targets_are_refused(arguments, monkeypatch, tmp_path):
    read = Task.read

    def without_targets(self, source, *more, **options):
        examples = read(self, source, *more, **options)
        if source.endswith("valid.jsonl"):
            examples.num_items = 0 * examples.num_items
        return examples

    monkeypatch.setattr(Task, "read", without_targets)
    with pytest.raises(RunError, match="--valid_input: no target items with a positive weight"):
        train.main(arguments)
    assert not (tmp_path / "run").exists()


def split_in_two(sample, folder):
    rows = [json.loads(line) for line in (sample / "train.jsonl").read_text("utf-8").splitlines()]
    for name, part in (("train-00000-of-00002", rows[:20]), ("train-00001-of-00002", rows[20:])):
        datasets.Dataset.from_list(part).to_parquet(folder / f"{name}.parquet")
        text = "".join(json.dumps(row) + "\n" for row in part)
        (folder / f"{name}.jsonl").write_text(text, encoding="utf-8")
    return rows


def test_several_files_are_read_as_one_data_set(sample, tmp_path, tokenizer):
    split_in_two(sample, tmp_path)
    shards = tmp_path / "shards"
    shards.mkdir()
    for file in tmp_path.glob("*.parquet"):
        file.rename(shards / file.name)
    one = generate_dataset(sample / "train.jsonl", tokenizer, 48)
    files = sorted(map(str, tmp_path.glob("*.jsonl")))
    for source in (files, str(tmp_path / "train-*.jsonl"), shards, f"{shards}:train"):
        many = generate_dataset(source, tokenizer, 48)
        assert len(many) == len(one)
        assert plain(many[len(one) - 1]) == plain(one[len(one) - 1])


def test_error_in_one_of_several_files_contains_file_and_line(sample, tmp_path, tokenizer):
    split_in_two(sample, tmp_path)
    second = tmp_path / "train-00001-of-00002.jsonl"
    second.write_text(second.read_text("utf-8") + "{broken\n", encoding="utf-8")
    with pytest.raises(DataError, match=r"00001-of-00002\.jsonl:23: broken JSON"):
        generate_dataset(str(tmp_path / "*.jsonl"), tokenizer, 48)
    lines = second.read_text("utf-8").splitlines()
    row = dict.fromkeys(json.loads(lines[0]))
    second.write_text("\n".join([*lines[:3], json.dumps(row)]), encoding="utf-8")
    with pytest.raises(DataError, match=r"00001-of-00002\.jsonl:4: no value"):
        generate_dataset(str(tmp_path / "*.jsonl"), tokenizer, 48)


@pytest.mark.parametrize(
    ("source", "words"),
    [
        ("none-*.jsonl", "no file matches"),
        (["a.jsonl", "b.csv"], "not in the format of"),
        ("folder", "the folder contains no data file"),
        ("nobody/nothing:train", "cannot be read"),
        ("shards:test", "cannot be read"),
        ("one:train[x]", r"one:train\[x\]: cannot be read \(Unrecognized instruction"),
    ],
)
def test_missing_source_and_mixed_formats_are_reported(
    source, words, sample, tmp_path, tokenizer, monkeypatch
):
    monkeypatch.chdir(tmp_path)
    for name in ("folder", "shards", "one"):
        (tmp_path / name).mkdir()
    shutil.copy(sample / "train.jsonl", tmp_path / "one")
    split_in_two(sample, tmp_path / "shards")
    for name in ("a.jsonl", "b.csv"):
        (tmp_path / name).write_text("{}")
    with pytest.raises(DataError, match=words):
        generate_dataset(source, tokenizer, 48)
