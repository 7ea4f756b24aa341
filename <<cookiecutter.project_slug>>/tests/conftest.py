"""What the tests share: a few real examples, the tiny base model, and a way to run train.py."""

import json
import os
import subprocess
import sys
from itertools import islice
from pathlib import Path

import pytest

# Before torch is imported: two processes on two cores must not fight for them.
os.environ.update(HF_HUB_OFFLINE="1", OMP_NUM_THREADS="1", ACCELERATE_USE_CPU="true")

import train  # noqa: E402
from training.launch import load_tokenizer  # noqa: E402

ROOT = Path(train.__file__).parent
ACCELERATE = Path(sys.executable).with_name("accelerate")
LAUNCH = [ACCELERATE, "launch", "--multi_gpu", "--num_processes", "2"]


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


@pytest.fixture
def arguments(sample, tmp_path) -> list[str]:
    """Arguments of a short run with dropout: 6 steps an epoch, the last of them smaller."""
    return [
        *("--train_input", str(sample / "train.jsonl")),
        *("--valid_input", str(sample / "valid.jsonl")),
        *("--model_id", str(ROOT / "tiny"), "--outdir", str(tmp_path / "run")),
        *("--max_len", "48", "--batch_size", "8", "--epochs", "2", "--num_workers", "0"),
    ]


def launch(*arguments: str, script: Path = ROOT / "train.py") -> subprocess.CompletedProcess:
    """Run a script in two processes."""
    command = [*LAUNCH, script, *arguments]
    return subprocess.run(command, capture_output=True, text=True, cwd=ROOT, timeout=300)
