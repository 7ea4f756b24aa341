"""Fixtures and functions that render projects, without the settings in the user's home folder."""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

ROOT = Path(__file__).resolve().parent.parent
TEMPLATE = ROOT / "<<cookiecutter.project_slug>>"
SLUG = "my-project"  # name of a project rendered with the default answers
TASKS: list[str] = json.loads((ROOT / "cookiecutter.json").read_text(encoding="utf-8"))["task"]
SCRIPTS = ROOT / "tests" / "scripts"  # scripts that tests run in a rendered project
CACHES = {"__pycache__", ".mypy_cache", ".pytest_cache", ".ruff_cache"}

# So that the tests can import hf_template_ext.py.
sys.path.insert(0, str(ROOT))

from cookiecutter.main import cookiecutter  # noqa: E402

Render = Callable[..., Path]


def bake(out: Path, answers: dict[str, str], hooks: bool = True) -> Path:
    """Render a project into the folder `out`, without questions, and return its folder."""
    with tempfile.TemporaryDirectory() as private:
        project = cookiecutter(
            str(ROOT),
            no_input=True,
            extra_context=answers,
            output_dir=str(out),
            accept_hooks=hooks,
            default_config={"replay_dir": private, "cookiecutters_dir": private},
        )
    return Path(project)


def about(task: str) -> dict[str, Any]:
    """Return the content of the task's file templates/TASK/task.json."""
    return json.loads((ROOT / "templates" / task / "task.json").read_text(encoding="utf-8"))


def files_of(folder: Path) -> list[str]:
    """Return the files in a folder as sorted relative paths, without the caches of tools."""
    paths = (path.relative_to(folder) for path in folder.rglob("*") if path.is_file())
    return sorted(path.as_posix() for path in paths if not CACHES.intersection(path.parts))


def some(values: list, count: int = 1) -> list:
    """Return all values if TEST_ALL is set, as by `make test-all`; else the first `count`."""
    return values if "TEST_ALL" in os.environ else values[:count]


def contents(folder: Path) -> dict[str, bytes]:
    """Return the content of each file in a folder."""
    return {name: (folder / name).read_bytes() for name in files_of(folder)}


def wait_for(condition: Callable[[], bool]) -> None:
    """Wait for a condition, at most three minutes."""
    until = time.monotonic() + 180
    while not condition():
        assert time.monotonic() < until
        time.sleep(0.05)


@pytest.fixture(scope="session")
def render(tmp_path_factory: pytest.TempPathFactory) -> Render:
    """Return a function: render(task="seq2seq", ...) returns a project that several tests share."""
    shared = tmp_path_factory.getbasetemp()
    if "PYTEST_XDIST_WORKER" in os.environ:
        shared = shared.parent  # the parent folder is shared by the workers
    (shared / "rendered").mkdir(exist_ok=True)

    def rendered(**answers: str) -> Path:
        key = hashlib.sha256(json.dumps(answers, sort_keys=True).encode()).hexdigest()
        target = shared / "rendered" / key[:16]
        if not target.exists():
            fresh = tmp_path_factory.mktemp("fresh")
            bake(fresh, answers)
            with contextlib.suppress(OSError):  # another worker was first
                fresh.rename(target)
        return target / answers.get("project_slug", SLUG)

    return rendered


@pytest.fixture(params=TASKS)
def task(request: pytest.FixtureRequest) -> str:
    """Each task; @pytest.mark.parametrize("task", [...]) selects some of them."""
    return request.param


@pytest.fixture
def project(task: str, render: Render, tmp_path: Path) -> Path:
    """A copy of the project for the task, used by this test only."""
    return Path(shutil.copytree(render(task=task), tmp_path / SLUG))


class Shell:
    """Runs the command cookiecutter in an empty folder, with a temporary home folder."""

    def __init__(self, folder: Path) -> None:
        self.here, self.home = folder / "here", folder / "home"
        self.here.mkdir()
        self.home.mkdir()
        self.environment = {**os.environ, "HOME": str(self.home), "COLUMNS": "200"}

    def run(
        self,
        *arguments: str,
        template: str | Path = ROOT,
        python: str | Path = sys.executable,
        typed: str = "",
        **environment: str,
    ) -> subprocess.CompletedProcess[str]:
        return subprocess.run(
            [python, "-m", "cookiecutter", template, *arguments],
            cwd=self.here,
            env={**self.environment, **environment},
            input=typed,
            capture_output=True,
            encoding="utf-8",
            timeout=120,
        )

    def assert_refused(self, done: subprocess.CompletedProcess[str], start: str) -> None:
        assert done.returncode != 0
        assert done.stdout.splitlines()[-1].startswith(start), done.stdout
        assert list(self.here.iterdir()) == []


@pytest.fixture
def shell(tmp_path: Path) -> Shell:
    return Shell(tmp_path)


# Parts of the names of the tests that take half a minute or more, from the longest to the shortest.
# The names of some shorter tests also contain these parts.
LONGEST = ["own_tests_pass[classification", "own_tests_pass", "compiling", "on_two_hosts"]
LONGEST += ["is_rendered", "time_limit"]


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Put the longest tests first in each half of the list: each of two workers gets a half."""
    longest = list(dict.fromkeys(i for name in LONGEST for i in items if name in i.name))
    others = [item for item in items if item not in longest]
    middle = len(others) // 2
    items[:] = [*longest[::2], *others[:middle], *longest[1::2], *others[middle:]]
