"""Fixtures: a few rows of data/, arguments of a short run on them, and functions that train."""

import gc
import json
import math
import os
from itertools import islice
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
# Use one thread per process, because the processes of a test share the CPU cores. OMP_NUM_THREADS
# has to be set before torch is imported.
os.environ.update(HF_HUB_OFFLINE="1", OMP_NUM_THREADS="1", ACCELERATE_USE_CPU="true")
os.environ["PYTHONPATH"] = f"{ROOT}{os.pathsep}{ROOT / 'tests'}"  # for processes started by tests

from helpers.processes import Launch  # noqa: E402
from model.dataset import generate_dataset  # noqa: E402
from training.loading import load_tokenizer  # noqa: E402

# Exclude the imported modules from garbage collection, which would take a third of the time of a
# short run. train.py also does this when it is started as a script.
gc.freeze()


@pytest.fixture(scope="session")
def sample(tmp_path_factory) -> Path:
    """A folder with a small train.jsonl and valid.jsonl, and a copy of `tiny` without dropout."""
    folder = tmp_path_factory.mktemp("sample")
    for name, lines in (("train.jsonl", 42), ("valid.jsonl", 21)):
        with (ROOT / "data" / name).open(encoding="utf-8") as source:
            rows = [json.loads(line) for line in islice(source, lines)]
        # Truncate values: some tasks have long texts, which would make tests slow.
        rows = [{key: value[:300] for key, value in row.items()} for row in rows]
        text = "".join(json.dumps(row) + "\n" for row in rows)
        (folder / name).write_text(text, encoding="utf-8")
    (folder / "tiny").mkdir()
    for file in (ROOT / "tiny").iterdir():
        (folder / "tiny" / file.name).write_bytes(file.read_bytes())
    config = json.loads((ROOT / "tiny" / "config.json").read_text(encoding="utf-8"))
    config.update({key: 0.0 for key in config if "drop" in key})
    (folder / "tiny" / "config.json").write_text(json.dumps(config), encoding="utf-8")
    return folder


@pytest.fixture(scope="session")
def tokenizer():
    return load_tokenizer(str(ROOT / "tiny"))


@pytest.fixture(scope="session")
def steps(sample, tokenizer) -> int:
    """Number of optimizer steps per epoch of a run with the fixture `arguments`."""
    return math.ceil(len(generate_dataset(sample / "train.jsonl", tokenizer, 48)) / 8)


@pytest.fixture
def arguments(sample, tmp_path) -> list[str]:
    """Arguments of a short run, with the dropout of `tiny`, if any.

    In most tasks, the last batch of each epoch has fewer examples than the others.
    """
    return [
        *("--train_input", str(sample / "train.jsonl")),
        *("--valid_input", str(sample / "valid.jsonl")),
        *("--model_id", str(ROOT / "tiny"), "--outdir", str(tmp_path / "run")),
        *("--max_len", "48", "--batch_size", "8", "--epochs", "2"),
    ]


@pytest.fixture(scope="session")
def uninterrupted(tmp_path_factory):
    """Return a function that trains without interruption, and returns the output directory.

    Calls that differ at most in the output directory share one run.
    """
    outdirs: dict[tuple, Path] = {}

    def run(arguments: list[str], processes: int = 1) -> Path:
        position = arguments.index("--outdir")
        key = (*arguments[:position], *arguments[position + 2 :]), processes
        if key not in outdirs:
            folder = tmp_path_factory.mktemp("uninterrupted")
            outdir = ["--outdir", str(folder / "run")]
            Launch([*key[0], *outdir], folder / "output", processes).expect()
            outdirs[key] = folder / "run"
        return outdirs[key]

    return run


@pytest.fixture
def in_two_processes(arguments, tmp_path):
    """Return a function that trains in two processes and returns the output of the first one.

    The first argument of the function is the name of the output directory.
    """

    def run(name: str, *more: str, **options) -> str:
        both = [*arguments, "--batch_size", "4", "--outdir", str(tmp_path / name), *more]
        return Launch(both, tmp_path / f"output of {name}", 2, **options).expect()

    return run
