"""A new task needs only a folder, and the name of the task in cookiecutter.json.

The tests add a task to a copy of the template and test the copy.
"""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from conftest import CACHES, ROOT, SLUG, TEMPLATE

NAME = "another_task"
FOLDER = ROOT / "templates" / "token_classification"

# Tests of the template that apply to every task.
OF_THE_TEMPLATE = ["tests/test_rendering.py", "tests/test_structure.py"]
if "TEST_ALL" in os.environ:
    OF_THE_TEMPLATE += ["tests/test_matrix.py", "tests/test_models.py", "tests/test_prompts.py"]
OF_EVERY_TASK = (
    f"{NAME} or have_the_same_files or same_bytes or ruff_on_the_template or have_prompts"
)
# Tests of the project: its contract, exactness, checkpoints, and interrupted runs that resume
# bit-identically.
OF_THE_PROJECT = [
    "test_contract.py",
    "test_exactness.py",
    "test_checkpoint_portability.py::test_stock_checkpoint_opens_in_an_empty_folder",
    "test_signals.py::test_signal_to_one_process_stops_all[SIGTERM-1-0]",
    "test_runs.py::test_resumed_run_is_bit_identical[9]",
]

# Remove the variables of pytest-xdist: with them, the pytest started below would act as a worker.
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
    """A copy of this template with a folder for the new task, and its name in cookiecutter.json."""
    copy = tmp_path_factory.mktemp("new") / "template"
    for name in ("hooks", "scripts", "templates", "tests", TEMPLATE.name):
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
    # Use a separate process: this process has imported the extension of the original template.
    code = f"from conftest import *; bake(ROOT.parent, {{'task': {NAME!r}}})"
    done = run(template / "tests", "-c", code)
    assert done.returncode == 0, done.stderr
    return template.parent / SLUG


def test_some_tests_of_the_template_pass(template: Path) -> None:
    command = ["-m", "pytest", "-q", "-p", "no:cacheprovider", *OF_THE_TEMPLATE]
    done = run(template, *command, "-k", OF_EVERY_TASK)
    assert done.returncode == 0, done.stdout[-5000:]


def test_some_of_the_projects_own_tests_pass(project: Path) -> None:
    names = [f"tests/{name}" for name in OF_THE_PROJECT]
    done = run(project, "-m", "pytest", "-q", "-m", "", "-p", "no:cacheprovider", *names)
    assert done.returncode == 0, done.stdout[-5000:]
