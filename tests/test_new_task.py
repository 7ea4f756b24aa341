"""A new task is one folder and one word: add token classification, and test its project."""

from __future__ import annotations

import importlib.util
import json
import os
import shutil
import subprocess
import sys
from collections import Counter
from pathlib import Path

import pytest

from conftest import CACHES, ROOT, SCRIPTS, SLUG, TEMPLATE

NAME = "token_classification"
FOLDER = ROOT / "tests" / "fixtures" / NAME

# Tests of the template that apply to every task.
OF_THE_TEMPLATE = ["tests/test_rendering.py", "tests/test_structure.py"]
if "TEST_ALL" in os.environ:
    OF_THE_TEMPLATE += ["tests/test_matrix.py", "tests/test_models.py", "tests/test_prompts.py"]
OF_EVERY_TASK = f"{NAME} or agree or same_bytes or ruff_on_the_template or have_prompts"
# Tests of the project: the contract, exactness, invalid input, and runs that are stopped or killed,
# resumed, and bit-identical to uninterrupted ones.
OF_THE_PROJECT = [
    "test_model.py",
    "test_exactness.py",
    "test_predict.py",
    "test_input.py::test_bad_file_is_refused_in_one_sentence",
    "test_input.py::test_every_format_gives_the_same_examples",
    "test_checkpoint_portability.py::test_stock_checkpoint_opens_in_an_empty_folder[best]",
    "test_signals.py::test_signal_to_one_process_stops_all[SIGTERM-1-0]",
    "test_runs.py::test_resumed_run_is_bit_identical[9]",
]

# Without the variables of pytest-xdist's workers: a nested pytest would treat itself as a worker.
ENVIRONMENT = {k: v for k, v in os.environ.items() if not k.startswith("PYTEST_XDIST")}


def run(folder: Path, *command: str | Path) -> subprocess.CompletedProcess[str]:
    variables = {"HF_HUB_OFFLINE": "1", "OMP_NUM_THREADS": "1", "ACCELERATE_USE_CPU": "true"}
    variables["PYTHONPATH"] = str(folder)
    return subprocess.run(
        [sys.executable, *map(str, command)],
        cwd=folder,
        env={**ENVIRONMENT, **variables},
        capture_output=True,
        text=True,
        timeout=600,
    )


@pytest.fixture(scope="module")
def template(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A copy of this template with the new folder and the new word."""
    copy = tmp_path_factory.mktemp("new") / "template"
    for name in ("hooks", "templates", "tests", TEMPLATE.name):
        shutil.copytree(ROOT / name, copy / name, ignore=shutil.ignore_patterns(*CACHES))
    shutil.copytree(FOLDER, copy / "templates" / NAME, ignore=shutil.ignore_patterns(*CACHES))
    for name in ("hf_template_ext.py", "pyproject.toml"):
        shutil.copy(ROOT / name, copy)
    questions = json.loads((ROOT / "cookiecutter.json").read_text(encoding="utf-8"))
    questions["task"].append(NAME)
    (copy / "cookiecutter.json").write_text(json.dumps(questions), encoding="utf-8")
    return copy


@pytest.fixture(scope="module")
def project(template: Path) -> Path:
    # In a separate process, since this one has loaded the hooks of the original template.
    code = f"from conftest import *; bake(ROOT.parent, {{'task': {NAME!r}}})"
    done = run(template / "tests", "-c", code)
    assert done.returncode == 0, done.stderr
    return template.parent / SLUG


def test_tests_of_the_template_pass(template: Path) -> None:
    command = ["-m", "pytest", "-q", "-p", "no:cacheprovider", *OF_THE_TEMPLATE]
    done = run(template, *command, "-k", OF_EVERY_TASK)
    assert done.returncode == 0, done.stdout[-5000:]


def test_types_of_the_project(project: Path, tmp_path: Path) -> None:
    done = run(project, "-m", "mypy", "--cache-dir", tmp_path)
    assert done.returncode == 0, done.stdout


def test_the_projects_own_tests_pass(project: Path) -> None:
    names = [f"tests/{name}" for name in OF_THE_PROJECT]
    done = run(project, "-m", "pytest", "-q", "-m", "", "-p", "no:cacheprovider", *names)
    assert done.returncode == 0, done.stdout[-5000:]


def test_the_project_trains_and_predicts(project: Path, tmp_path: Path) -> None:
    options = ["--epochs=4", "--batch_size=4", "--metric_for_best_model=accuracy"]
    done = run(project, "train.py", *options, f"--outdir={tmp_path}/run")
    assert done.returncode == 0, done.stderr[-2000:]
    log = json.loads((tmp_path / "run" / "log.json").read_text())
    found = [entry["valid_log"] for entry in log.values()]
    best = max(found, key=lambda entry: entry["accuracy"])
    lines = (project / "data" / "valid.jsonl").read_text().splitlines()
    rows = [json.loads(line) for line in lines]
    tags = [tag for row in rows for tag in row["tags"]]
    assert best["count"] == len(tags)
    assert best["loss"] < found[0]["loss"]
    share_of_commonest = Counter(tags).most_common(1)[0][1] / len(tags)
    assert share_of_commonest < 0.7
    assert best["accuracy"] > 0.9
    assert best["span_f1"] > 0.7

    output = tmp_path / "out.jsonl"
    checkpoint, data = f"--checkpoint={tmp_path}/run/best", "--input=data/valid.jsonl"
    done = run(project, "predict.py", checkpoint, data, f"--output={output}")
    assert done.returncode == 0, done.stderr[-2000:]
    predicted = [json.loads(line) for line in output.read_text().splitlines()]
    assert [row["tokens"] for row in predicted] == [row["tokens"] for row in rows]
    given = [tag for row in predicted for tag in row["prediction"]]
    right = sum(tag == other for tag, other in zip(tags, given, strict=True))
    assert right / len(tags) == pytest.approx(best["accuracy"])


def test_a_dry_run_shows_tags(project: Path, tmp_path: Path) -> None:
    done = run(project, "train.py", "--dry_run", f"--outdir={tmp_path}/run")
    assert done.returncode == 0, done.stderr[-2000:]
    row = json.loads((project / "data" / "train.jsonl").read_text().splitlines()[0])
    assert f"target: {' '.join(row['tags'])!r}" in done.stdout


def test_spans_are_those_of_conlleval() -> None:
    about = importlib.util.spec_from_file_location("metrics", FOLDER / "metrics.py")
    assert about and about.loader
    metrics = importlib.util.module_from_spec(about)
    about.loader.exec_module(metrics)
    for tags, expected in (
        ("B-LOC I-LOC O B-LOC B-LOC", {(0, 2, "LOC"), (3, 4, "LOC"), (4, 5, "LOC")}),
        ("I-PER I-LOC O I-LOC", {(0, 1, "PER"), (1, 2, "LOC"), (3, 4, "LOC")}),
        ("S-PER B-ORG I-ORG E-ORG", {(0, 1, "PER"), (1, 4, "ORG")}),
        ("NOUN O VERB", {(0, 1, "NOUN"), (2, 3, "VERB")}),
    ):
        assert metrics.spans(tags.split()) == expected


def test_invalid_rows_are_located(project: Path, tmp_path: Path) -> None:
    good = {"tokens": ["It", "rains"], "tags": ["O", "O"]}
    files: dict[str, list[dict]] = {
        "odd": [good, {**good, "tags": ["O"]}],
        "unknown": [good, {**good, "tags": ["O", "B"]}],
        "empty": [{"tokens": " ", "tags": ""}],
    }
    for name, rows in files.items():
        text = "".join(json.dumps(row) + "\n" for row in rows)
        (tmp_path / f"{name}.jsonl").write_text(text)
    paths = [tmp_path / f"{name}.jsonl" for name in files]
    done = run(project, SCRIPTS / "refused_files.py", *paths)
    assert done.returncode == 0, done.stderr
    assert done.stdout.splitlines() == [
        f"{tmp_path}/odd.jsonl:2: 2 words, 1 tags; expected equal numbers",
        f"{tmp_path}/unknown.jsonl:2: unknown tag 'B'; expected one of O",
        f"{tmp_path}/empty.jsonl: no words; expected words and their tags",
    ]
