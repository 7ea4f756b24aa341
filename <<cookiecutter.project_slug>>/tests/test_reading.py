"""Texts are read unchanged from each format, with and without a cache."""

import bz2
import codecs
import csv
import datetime
import gzip
import json
import lzma
import os
import pickle
import random
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import datasets
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import HealthCheck, given, settings, strategies as st
from tokenizers import Tokenizer, models, pre_tokenizers
from transformers import AutoTokenizer, PreTrainedTokenizerFast

from conftest import ROOT
from errors import DataError
from model.dataset import OPTIONS, generate_dataset
from reading.locate import locate_row
from reading.tables import read_table

NAMES = [
    option["default"]
    for name, option in OPTIONS.items()
    if name.endswith("_column") and "default" in option
]
# Texts that a reader could convert to another type, and texts with a special meaning in a format.
ODD = [
    *(
        "1",
        "1.0",
        "1.10",
        "007",
        "1e5",
        "10000000000000000000000",
        "-",
        "NA",
        "null",
        "NaN",
        "true",
    ),
    *("2019-01-01", "2024-01-01T10:00:00Z", "10:00", "", " ", " a ", '"', '""', 'say "x"', "a,b"),
    *("a\tb", "a\nb", "a\r\nb", "a\rb", "\ufeffa", "\u2028", "a\0b", "😀", "é", "[1]", '{"a": 1}'),
]
TEXT = st.sampled_from(ODD) | st.text(st.characters(exclude_categories=["Cs"]), max_size=9)
ROWS = st.lists(st.tuples(TEXT, TEXT), min_size=1, max_size=6)
SETTINGS = settings(
    max_examples=20, deadline=None, derandomize=True, suppress_health_check=list(HealthCheck)
)


@pytest.fixture(autouse=True)
def cache(tmp_path, monkeypatch) -> Path:
    """An empty cache folder for this test."""
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path / "cache")
    return tmp_path / "cache"


def read(path: str | Path, *columns: str, lists: tuple[str, ...] = ()) -> list[tuple]:
    columns = columns or ("a", "b")
    return [tuple(row.values()) for row in read_table(path, list(columns), lists).to_list()]


def lines(*rows: object) -> str:
    return "".join(json.dumps(row) + "\n" for row in rows)


@SETTINGS
@given(rows=ROWS, ascii_only=st.booleans(), indent=st.sampled_from([None, 1]))
def test_json_texts_equal_those_of_json_loads(rows, ascii_only, indent, tmp_path):
    objects = [{"a": first, "more": 1, "b": second} for first, second in rows]
    text = json.dumps(objects, ensure_ascii=ascii_only, indent=indent)
    (tmp_path / "t.json").write_text(text, encoding="utf-8", newline="")
    assert read(tmp_path / "t.json") == rows
    text = "".join(json.dumps(row, ensure_ascii=ascii_only) + "\n" for row in objects)
    (tmp_path / "t.jsonl").write_text(text, encoding="utf-8", newline="")
    assert read(tmp_path / "t.jsonl") == rows


@SETTINGS
@given(rows=ROWS)
def test_csv_texts_equal_those_of_the_csv_module(rows, tmp_path):
    with (tmp_path / "t.csv").open("w", encoding="utf-8", newline="") as file:
        csv.writer(file, quoting=csv.QUOTE_ALL).writerows([("a", "b"), *rows])
    if sys.version_info < (3, 11) and any("\0" in cell for row in rows for cell in row):
        return  # the csv module of Python 3.10 cannot read NUL characters
    assert read(tmp_path / "t.csv") == rows


@SETTINGS
@given(rows=ROWS)
def test_csv_cells_quoted_only_where_needed_are_texts_or_missing_values(rows, tmp_path):
    rows = [tuple(cell.replace("\0", "") for cell in row) for row in rows]
    with (tmp_path / "t.csv").open("w", encoding="utf-8", newline="") as file:
        csv.writer(file).writerows([("a", "b"), *rows])
    if all(cell for row in rows for cell in row):
        assert read(tmp_path / "t.csv") == rows
    else:
        with pytest.raises(DataError, match=r"t\.csv:\d+: no value"):
            read(tmp_path / "t.csv")


@SETTINGS
@given(rows=ROWS)
def test_tsv_cells_are_read_unchanged_or_refused(rows, tmp_path):
    text = "".join("\t".join(row) + "\n" for row in [("a", "b"), *rows])
    (tmp_path / "t.tsv").write_text(text, encoding="utf-8", newline="")
    expected = [tuple(line.split("\t")) for line in text.split("\n")[1:-1]]
    try:
        found = read(tmp_path / "t.tsv")
    except DataError as error:
        assert "t.tsv:" in str(error)
        assert any(len(row) != 2 or not all(row) or '""' in "".join(row) for row in expected)
    else:
        expected = [(first, second.rstrip("\r")) for first, second in expected]
        assert found == expected


@SETTINGS
@given(rows=ROWS)
def test_parquet_texts_equal_those_of_pyarrow(rows, tmp_path):
    table = pa.table({"a": [row[0] for row in rows], "b": [row[1] for row in rows]})
    pq.write_table(table, tmp_path / "t.parquet")
    assert read(tmp_path / "t.parquet") == rows


def test_json_numbers_are_read_as_written_in_the_file(tmp_path):
    literals = ["1", "1.0", "1.10", "-0.5e-3", "123456789012345678901234567890", "true", "false"]
    text = "".join(f'{{"a": {word}}}\n' for word in [*literals, '"1.0"', '"2019-01-01"'])
    (tmp_path / "t.jsonl").write_text(text)
    expected = [*literals, "1.0", "2019-01-01"]
    assert read(tmp_path / "t.jsonl", "a") == [(word,) for word in expected]


def test_numbers_and_booleans_are_the_same_text_in_json_csv_and_parquet(tmp_path):
    rows = [{"a": 1, "b": 0.5, "c": True}, {"a": -(2**62), "b": 1.0, "c": False}]
    expected = [("1", "0.5", "true"), (str(-(2**62)), "1.0", "false")]
    (tmp_path / "t.jsonl").write_text(lines(*rows))
    (tmp_path / "t.json").write_text(json.dumps(rows))
    (tmp_path / "t.csv").write_text("\n".join(map(",".join, [("a", "b", "c"), *expected])))
    datasets.Dataset.from_list(rows).to_parquet(tmp_path / "t.parquet")
    for name in ("t.jsonl", "t.json", "t.csv", "t.parquet"):
        assert read(tmp_path / name, "a", "b", "c") == expected, name


def test_other_columns_are_ignored(tmp_path):
    more = [1, "web", None, [1, {"a": 2}], {"deep": [1]}, 10**400, "2019-01-01", "\ud800", 0.5]
    for number, value in enumerate(more):
        text = lines({"a": "x", f"column {number}": 1}, {"more": value, "a": "y"}) * 2
        (tmp_path / f"{number}.jsonl").write_text(text)
    assert read(tmp_path, "a") == [("x",), ("y",)] * 2 * len(more)
    pq.write_table(pa.table({"a": ["x"], "b": [1]}), tmp_path / "1.parquet")
    pq.write_table(pa.table({"b": [{"c": [1]}], "a": ["y"]}), tmp_path / "2.parquet")
    assert read(str(tmp_path / "*.parquet"), "a") == [("x",), ("y",)]


def test_lists_of_texts_are_read(tmp_path):
    rows = [["x", "1"], [], ["2019-01-01"]]
    (tmp_path / "t.jsonl").write_text(lines(*({"a": row} for row in rows)))
    labels = datasets.List(datasets.ClassLabel(names=["x", "y"]))
    typed = datasets.Dataset.from_dict(
        {"a": [[1, 0], [], [1]]}, features=datasets.Features({"a": labels})
    )
    typed.to_parquet(tmp_path / "t.parquet")
    assert read(tmp_path / "t.jsonl", "a", lists=("a",)) == [(row,) for row in rows]
    expected = [(["y", "x"],), ([],), (["y"],)]
    assert read(tmp_path / "t.parquet", "a", lists=("a",)) == expected
    (tmp_path / "t.jsonl").write_text(lines({"a": []}, {"a": "x"}))
    with pytest.raises(DataError, match=r"t\.jsonl:2: 'a' holds text; expected a list"):
        read(tmp_path / "t.jsonl", "a", lists=("a",))


@pytest.mark.parametrize(
    "text",
    [
        ',a,b\n0,x,y\n1,"p, q",\n',  # with an index, as written by pandas
        "a,b,\nx,y,\n\n"
        + '"p, q","",\n',  # with commas at the ends of lines, as written by spreadsheets
        'sep=,\na,b\nx,y\n"p, q",""\n',
        'sep=;\r\na;b\r\nx;y\r\n"p, q";""\r\n',
        'a,b\rx,y\r"p, q",""\r',
        '\ufeff"a","b"\r\nx,y\r\n"p, q",""\r\n',
    ],
)
def test_csv_files_of_other_programs_are_read(text, tmp_path):
    (tmp_path / "t.csv").write_text(text.replace('q",\n', 'q",""\n'), newline="")
    assert read(tmp_path / "t.csv") == [("x", "y"), ("p, q", "")]


def test_row_over_several_lines_is_located_at_its_first_line(tmp_path):
    (tmp_path / "t.csv").write_text('a,b\n"1\n2",x\n"3\n\n4",y\n5,z\n')
    (tmp_path / "t.json").write_text('[\n {"a": 1},\n {\n"a":\n2},\n\n {"a": 3}]')
    assert [locate_row(tmp_path / "t.csv", row) for row in range(3)] == [
        f"{tmp_path}/t.csv:{line}" for line in (2, 4, 7)
    ]
    assert [locate_row(tmp_path / "t.json", row) for row in range(3)] == [
        f"{tmp_path}/t.json:{line}" for line in (2, 3, 7)
    ]


def test_json_array_larger_than_a_block_is_read(tmp_path):
    draw = random.Random(0)
    sizes = [0, 1, 3 * 2**20, *(draw.randrange(2**17) for _ in range(20))]
    rows = [("é" * size, str(size)) for size in sizes]
    text = json.dumps([{"a": a, "b": b} for a, b in rows], ensure_ascii=False)
    (tmp_path / "t.json").write_bytes(codecs.BOM_UTF8 + text.encode())
    assert read(tmp_path / "t.json") == rows
    (tmp_path / "t.json").write_bytes(text.encode()[:-1] + b',\n"\xe9"]')
    with pytest.raises(DataError, match=r"t\.json:2: not UTF-8"):
        read(tmp_path / "t.json")
    (tmp_path / "t.json").write_bytes(text.encode() + b"\n\n]")
    with pytest.raises(DataError, match=r"t\.json:3: broken JSON"):
        read(tmp_path / "t.json")


COMPRESSORS: dict[str, Callable[[bytes], bytes]] = {
    "gz": gzip.compress,
    "bz2": bz2.compress,
    "xz": lzma.compress,
    "zst": lambda data: pa.compress(data, codec="zstd", asbytes=True),
}


@pytest.mark.parametrize("ending", COMPRESSORS)
def test_compressed_files_are_read_and_damaged_files_are_refused(ending, tmp_path):
    data = lines({"a": "x", "b": "1"}, {"a": "y", "b": "2"}).encode()
    twice = COMPRESSORS[ending](data) * 2  # several members, as written by parallel compressors
    path = tmp_path / f"Train.JSONL.{ending.upper()}"
    path.write_bytes(twice)
    assert read(path) == [("x", "1"), ("y", "2")] * 2
    assert read(f"file://{path}") == [("x", "1"), ("y", "2")] * 2
    assert locate_row(path, 3) == f"{path}:4"
    assert read(path, "b") == [("1",), ("2",)] * 2
    path.write_bytes(twice[:-3])
    with pytest.raises(DataError, match=f"{path.name}: cannot be read"):
        read(path)


def test_paths_with_special_characters_and_patterns_are_read(tmp_path, monkeypatch):
    monkeypatch.setenv("HOME", str(tmp_path))
    folder = tmp_path / "exp[1] *"
    (folder / ".ipynb_checkpoints").mkdir(parents=True)
    (folder / "_delta_log").mkdir()
    (folder / "T.CSV").write_text("a,b\nx,y\n")
    for name in ("._T.CSV", ".ipynb_checkpoints/T.csv", "_delta_log/0.json", "_SUCCESS"):
        (folder / name).write_text("not to be read")
    (folder / "dataset_info.json").write_text("{}")
    for source in (
        folder,
        folder / "T.CSV",
        "~/exp[[]1] ?/*.CSV",
        "~/exp[1] *",
        "~/exp[1] */T.CSV",
    ):
        assert read(source) == [("x", "y")], source


def test_folder_with_several_splits_needs_the_name_of_a_split(tmp_path):
    for name in ("train.jsonl", "validation.jsonl"):
        (tmp_path / name).write_text(lines({"a": "2019-01-01", "b": name}))
    with pytest.raises(DataError, match="has the splits train, validation; expected one"):
        read(tmp_path)
    assert read(f"{tmp_path}:validation") == [("2019-01-01", "validation.jsonl")]
    assert read(str(tmp_path / "train*")) == [("2019-01-01", "train.jsonl")]
    with pytest.raises(DataError, match="no files of a split 'test'"):
        read(f"{tmp_path}:test")


def test_folders_written_by_save_to_disk_are_read(tmp_path):
    labels = datasets.Features(
        {"a": datasets.Value("date32"), "b": datasets.ClassLabel(names=["no", "yes"])}
    )
    days = [datetime.date(1970, 1, day) for day in (2, 3, 4)]
    rows = datasets.Dataset.from_dict({"a": days, "b": [0, 1, 1]}, features=labels)
    rows.save_to_disk(tmp_path / "one")
    datasets.DatasetDict({"train": rows, "test": rows.select([2])}).save_to_disk(tmp_path / "many")
    expected = [("1970-01-02", "no"), ("1970-01-03", "yes"), ("1970-01-04", "yes")]
    for source in ("one", "one:train", "many:train"):
        assert read(f"{tmp_path}/{source}") == expected, source
    assert read(f"{tmp_path}/many:test") == expected[2:]
    assert read(f"{tmp_path}/many:train[1:]") == expected[1:]
    assert not list(tmp_path.glob("one/cache*"))
    with pytest.raises(DataError, match="has the splits train, test; expected one"):
        read(tmp_path / "many")
    with pytest.raises(DataError, match="one:test: cannot be read"):
        read(f"{tmp_path}/one:test")


def test_json_texts_that_datasets_converted_to_dates_are_refused(tmp_path):
    (tmp_path / "README.md").write_text(
        "---\nconfigs:\n- config_name: b\n  data_files: x.jsonl\n---\n"
    )
    (tmp_path / "x.jsonl").write_text(lines({"a": "2019-01-01", "b": "y"}))
    assert read(f"{tmp_path}:b:train", "b") == [("y",)]
    with pytest.raises(DataError, match=r"'a' was read as timestamp\[s\]; expected the URL"):
        read(f"{tmp_path}:b:train", "a")


def test_slice_of_a_split_selects_its_rows(tmp_path):
    (tmp_path / "train.jsonl").write_text(lines(*({"a": str(n)} for n in range(10))))
    assert read(f"{tmp_path}:train[8:]", "a") == [("8",), ("9",)]
    assert read(f"{tmp_path}:train[:10%]", "a") == [("0",)]
    with pytest.raises(DataError, match="no rows"):
        read(f"{tmp_path}:train[10:]", "a")


def test_file_replaced_by_one_of_equal_size_and_time_is_read_again(tmp_path):
    path = tmp_path / "t.jsonl"
    other = tmp_path / "other.jsonl"
    path.write_text(lines({"a": "old"}))
    other.write_text(lines({"a": "new"}))
    assert read(path, "a") == [("old",)]
    stat = path.stat()
    os.utime(other, ns=(stat.st_atime_ns, stat.st_mtime_ns))
    other.replace(path)
    assert read(path, "a") == [("new",)]


@pytest.fixture
def rows(tmp_path) -> Path:
    """A file with two rows that every task can read."""
    path = tmp_path / "rows.jsonl"
    path.write_text(lines(*(dict.fromkeys(NAMES, word) for word in ("cold tea", "warm"))))
    return path


def test_saved_tokenizer_and_cached_tokens_do_not_depend_on_earlier_calls(rows, cache, tmp_path):
    saved = []
    cached: set[Path] = set()
    for number in range(3):
        tokenizer = AutoTokenizer.from_pretrained(str(ROOT / "tiny"))
        if number == 1:
            tokenizer(["a b c"], truncation=True, max_length=2, padding="max_length")
            tokenizer(text_target="a")
        generate_dataset(rows, tokenizer, 16)
        tokenizer.save_pretrained(tmp_path / str(number))
        saved.append({p.name: p.read_bytes() for p in (tmp_path / str(number)).iterdir()})
        files = set((cache / "tokens").glob("*.arrow"))
        assert files and cached in (set(), files)  # the cached tokens are used again
        cached = files
    assert saved[0] == saved[1] == saved[2]


def test_changed_tokenizer_invalidates_cached_tokens(rows):
    tokenizer = AutoTokenizer.from_pretrained(str(ROOT / "tiny"))
    before = generate_dataset(rows, tokenizer, 16)
    tokenizer.add_tokens(["cold tea"])
    after = generate_dataset(rows, tokenizer, 16)
    new = tokenizer.convert_tokens_to_ids("cold tea")
    assert new in after[0]["input_ids"] and new not in before[0]["input_ids"]
    assert before.fingerprint != after.fingerprint


@pytest.mark.proof
def test_changed_code_of_the_tokenization_invalidates_cached_tokens(rows, tmp_path):
    project = tmp_path / "project"
    for name in ("model", "reading", "tiny", "errors.py"):
        source = ROOT / name
        copy = shutil.copytree if source.is_dir() else shutil.copy
        project.mkdir(exist_ok=True)
        copy(source, project / name)
    dataset = project / "model" / "dataset.py"
    text = dataset.read_text(encoding="utf-8")
    assert "read_table(path," in text
    # The function that encodes texts calls a function of another module, which imports a constant.
    text = text.replace(
        "rows = tokenize(table, encode, tokenizer)", "rows = _helped(table, encode, tokenizer)"
    )
    text += """

from helper import clean


def _helped(table, encode, tokenizer):
    def encode_clean(batch):
        return encode({**batch, NAME: [clean(text) for text in batch[NAME]]})
    return tokenize(table, encode_clean, tokenizer)
"""
    dataset.write_text(text + f"\n\nNAME = {NAMES[0]!r}\n", encoding="utf-8")
    (project / "helper.py").write_text(
        "from words import NEW\n\n\ndef clean(text):\n    return text.replace('cold', NEW)\n"
    )
    program = """
import importlib, sys
from pathlib import Path
import helper, words
import model.dataset as dataset
from transformers import AutoTokenizer
tokenizer = AutoTokenizer.from_pretrained("tiny")
for word in sys.argv[2:]:
    Path("words.py").write_text(f"NEW = {word!r}")
    for module in (words, helper, dataset):
        importlib.reload(module)
    example = dataset.generate_dataset(sys.argv[1], tokenizer, 16)[0]
    print(repr(tokenizer.decode(example["input_ids"])))
"""
    (project / "words.py").write_text("NEW = ''")
    done = subprocess.run(
        [sys.executable, "-B", "-c", program, str(rows), "cold", "hot", "cold"],
        cwd=project,
        env={**os.environ, "PYTHONPATH": str(project), "HF_DATASETS_CACHE": str(tmp_path / "c")},
        capture_output=True,
        text=True,
        timeout=120,
    )
    assert done.returncode == 0, done.stderr
    first, second, third = done.stdout.splitlines()
    assert "cold tea" in first and "hot tea" in second and third == first
    assert len(list((tmp_path / "c" / "tokens").glob("*.arrow"))) == 2


def word_tokenizer(**marks: str) -> PreTrainedTokenizerFast:
    """Build a tokenizer that adds no special tokens to a text."""
    words = ["[UNK]", "</s>", "a", "b"]
    tokenizer = Tokenizer(models.WordLevel({w: n for n, w in enumerate(words)}, "[UNK]"))
    tokenizer.pre_tokenizer = pre_tokenizers.Whitespace()
    return PreTrainedTokenizerFast(tokenizer_object=tokenizer, unk_token="[UNK]", **marks)


@pytest.mark.parametrize("text", ["", " \n"])
def test_text_without_tokens_gets_one_special_token(text, tmp_path):
    path = tmp_path / "t.jsonl"
    good = [dict.fromkeys(NAMES, word) for word in "ab"]
    path.write_text(lines(*good, {**good[0], NAMES[0]: text}))
    if {"messages_column", "words_column"} & OPTIONS.keys():
        pytest.skip("in this task, an empty text does not result in an example without tokens")
    dataset = generate_dataset(path, word_tokenizer(eos_token="</s>"), 16)
    assert dataset.lengths.min() > 0
    assert dataset[len(dataset) - 1]["input_ids"][-1] == 1


def test_pickled_data_set_for_a_worker_has_the_same_first_example(rows):
    dataset = generate_dataset(rows, AutoTokenizer.from_pretrained(str(ROOT / "tiny")), 16)
    copy = pickle.loads(pickle.dumps(dataset))
    batch, expected = (part.collate([part[0]]) for part in (copy, dataset))
    assert {k: getattr(v, "tolist", lambda v=v: v)() for k, v in batch.items()} == {
        k: getattr(v, "tolist", lambda v=v: v)() for k, v in expected.items()
    }


def test_describe_yields_lines_about_the_data(rows):
    tokenizer = AutoTokenizer.from_pretrained(str(ROOT / "tiny"))
    described = list(generate_dataset(rows, tokenizer, 16).describe())
    assert "example 0" in described
    assert any("cold tea" in line for line in described)
    assert not any("\n" in line for line in described)
