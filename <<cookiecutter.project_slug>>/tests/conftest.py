"""What the tests share: a few real examples, and the arguments of a short run on them."""

import json
import os
from itertools import islice
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
# Before torch is imported: two processes on two cores must not fight for them.
os.environ.update(HF_HUB_OFFLINE="1", OMP_NUM_THREADS="1", ACCELERATE_USE_CPU="true")
os.environ["PYTHONPATH"] = f"{ROOT}{os.pathsep}{ROOT / 'tests'}"  # for processes that tests start

from model.dataset import generate_dataset  # noqa: E402
from real_runs import Run  # noqa: E402
from training.loading import load_tokenizer  # noqa: E402


@pytest.fixture(scope="session")
def sample(tmp_path_factory) -> Path:
    """A folder with a small train.jsonl and valid.jsonl, and `tiny`, which has no dropout."""
    folder = tmp_path_factory.mktemp("sample")
    for name, lines in (("train.jsonl", 42), ("valid.jsonl", 21)):
        with (ROOT / "data" / name).open(encoding="utf-8") as source:
            rows = [json.loads(line) for line in islice(source, lines)]
        # Whole chapters would make a test slow.
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
    """Steps in an epoch of the run below."""
    return -(-len(generate_dataset(sample / "train.jsonl", tokenizer, 48)) // 8)


@pytest.fixture
def arguments(sample, tmp_path) -> list[str]:
    """Arguments of a short run with dropout; the last step of an epoch is a smaller one."""
    return [
        *("--train_input", str(sample / "train.jsonl")),
        *("--valid_input", str(sample / "valid.jsonl")),
        *("--model_id", str(ROOT / "tiny"), "--outdir", str(tmp_path / "run")),
        *("--max_len", "48", "--batch_size", "8", "--epochs", "2"),
    ]


@pytest.fixture(scope="session")
def left_alone(tmp_path_factory):
    """Run arguments to the end, undisturbed, once for all tests; give the folder of the run."""
    folders: dict[tuple, Path] = {}

    def run(arguments: list[str], processes: int = 1) -> Path:
        at = arguments.index("--outdir")
        key = (*arguments[:at], *arguments[at + 2 :]), processes
        if key not in folders:
            folder = tmp_path_factory.mktemp("left-alone")
            whole = Run([*key[0], "--outdir", str(folder / "run")], folder / "output", processes)
            assert whole.wait() == [0] * processes, whole.output()
            folders[key] = folder / "run"
        return folders[key]

    return run


@pytest.fixture
def in_two(arguments, tmp_path):
    """Run the arguments in two processes, into a folder of their own."""

    def run(name: str, *more: str, patch=None) -> str:
        both = [*arguments, "--batch_size", "4", "--outdir", str(tmp_path / name), *more]
        pair = Run(both, tmp_path / f"output of {name}", 2, patch)
        assert pair.wait() == [0, 0], pair.output() + pair.output(1)
        return pair.output()

    return run
