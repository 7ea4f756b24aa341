"""A data file with any content is used for training or refused in one sentence."""

import json
from typing import Any

import datasets
import pytest
import torch
from hypothesis import HealthCheck, example, given, settings, strategies as st

from conftest import ROOT
from errors import DataError
from model.configuration import ModelConfig
from model.dataset import OPTIONS, generate_dataset
from model.modeling import Model

pytestmark = pytest.mark.proof

NAMES = [
    option["default"]
    for name, option in OPTIONS.items()
    if name.endswith("_column") and "default" in option
]
HEADER = ",".join(NAMES).encode() + b"\n"
MANY = "x" * 10**6
# If the task has `drop_without_target`, omit rows without a target after truncation.
LENIENT: dict[str, Any] = {name: True for name in OPTIONS if name == "drop_without_target"}

ANY_TEXT = st.text() | st.text(alphabet='a,"\t\n\r\0 \ufeff\u2028😀é')
ANY_VALUE = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | ANY_TEXT,
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(), inner, max_size=3),
    max_leaves=4,
)
ROW = st.fixed_dictionaries({}, optional=dict.fromkeys([*NAMES, "other"], ANY_VALUE))
GOOD_ROW = st.fixed_dictionaries(dict.fromkeys(NAMES, ANY_TEXT))
FORMATS = ["jsonl", "json", "csv", "tsv", "txt", "parquet"]


def lines_of(rows: list[dict]) -> bytes:
    return b"".join(json.dumps(row).encode() + b"\n" for row in rows)


def cells_of(rows: list[list[str]]) -> bytes:
    return HEADER + "\n".join(",".join(row) for row in rows).encode("utf-8", "surrogatepass")


CONTENT = (
    st.binary(max_size=200)
    | st.lists(ROW, max_size=5).map(lines_of)
    | st.lists(GOOD_ROW, min_size=1, max_size=5).map(lines_of)
    | st.lists(GOOD_ROW, min_size=1, max_size=5).map(lambda rows: json.dumps(rows).encode())
    | st.binary(max_size=100).map(lambda tail: HEADER + tail)
    | st.binary(max_size=100).map(lambda tail: lines_of([dict.fromkeys(NAMES, "a")]) + tail)
    | st.lists(st.lists(st.text(), max_size=4), max_size=4).map(cells_of)
)


@pytest.fixture(scope="module")
def read(tokenizer, tmp_path_factory):
    """Return a function that reads a file and, if the file can be read, computes a loss.

    The function returns whether the file can be read.
    """
    cache = tmp_path_factory.mktemp("cache")
    folder = tmp_path_factory.mktemp("hostile")
    datasets.config.HF_DATASETS_CACHE, before = cache, datasets.config.HF_DATASETS_CACHE

    def reading(content: bytes, ending: str, max_len: int = 16) -> bool:
        path = folder / f"data.{ending}"
        path.write_bytes(content)
        try:
            dataset = generate_dataset(path, tokenizer, max_len, **LENIENT)
        except DataError as error:
            assert str(path) in str(error)
            assert "\n" not in str(error)
            return False
        assert len(dataset) > 0
        assert dataset.lengths.min() > 0
        indices = range(min(len(dataset), 8))
        model = Model(ModelConfig(str(ROOT / "tiny"), **dataset.schema))
        batch = dataset.collate([dataset[index] for index in indices])
        loss = model(**{k: v for k, v in batch.items() if isinstance(v, torch.Tensor)}).loss
        loss.backward()
        assert torch.isfinite(loss)
        return True

    yield reading
    datasets.config.HF_DATASETS_CACHE = before


@settings(max_examples=60, deadline=None, suppress_health_check=list(HealthCheck), derandomize=True)
@given(content=CONTENT, ending=st.sampled_from(FORMATS))
@example(content=lines_of([dict.fromkeys(NAMES, "")]), ending="jsonl")
@example(content=lines_of([dict.fromkeys(NAMES, "\ud800")]), ending="jsonl")
@example(content=lines_of([dict.fromkeys(NAMES, "a\0b")]), ending="jsonl")
@example(
    content=lines_of(
        [dict.fromkeys(NAMES, 1), dict.fromkeys(NAMES, "a"), dict.fromkeys(NAMES, 2.5)]
    ),
    ending="jsonl",
)
@example(
    content=lines_of([dict.fromkeys(NAMES, {}), dict.fromkeys(NAMES, []), dict.fromkeys(NAMES)]),
    ending="jsonl",
)
@example(content=b'{"%s": "a", "%s": "b"}\n' % (2 * (NAMES[0].encode(),)), ending="jsonl")
@example(content=lines_of([dict.fromkeys(NAMES, 10**400)]), ending="jsonl")
@example(content=b"[" * 10**5, ending="jsonl")
@example(content=b"[" * 10**5, ending="json")
@example(content=HEADER + b"a" + b"," * (len(NAMES) - 1) + b"\n\n\n", ending="csv")
@example(content=HEADER.replace(b"\n", b"," + HEADER) + b"a,b,c,d\n", ending="csv")
@example(content=HEADER + b'"a\n\n', ending="csv")
@example(content=HEADER + b"\0\n", ending="csv")
@example(content=b"\xef\xbb\xbf" + HEADER + b"a,b\n", ending="csv")
@example(content="a,b\n".encode("utf-16"), ending="csv")
@example(content=b" ", ending="txt")
@example(content=b"\0\0\0\0", ending="txt")
def test_any_file_is_trained_on_or_refused_in_one_sentence(content, ending, read):
    read(content, ending)


@pytest.mark.parametrize("ending", ["jsonl", "csv"])
def test_text_of_a_million_characters_is_trained_on(ending, read):
    for name in NAMES:
        rows = [dict.fromkeys(NAMES, last) for last in "ab"]
        rows[0][name] = MANY
        cells = HEADER + "\n".join(",".join(row.values()) for row in rows).encode()
        assert read(lines_of(rows) if ending == "jsonl" else cells, ending)


def test_unusual_characters_are_trained_on(read):
    for text in ("a\0b", "\u202eright to left", "😀" * 100, "\ufeffmark", "NA", " "):
        rows = [dict.fromkeys(NAMES, text), dict.fromkeys(NAMES, "a")]
        assert read(lines_of(rows), "jsonl", max_len=512), repr(text)
