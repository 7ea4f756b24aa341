"""GitHub workflows are valid, their commands exist, and they use the lowest supported Python."""

from __future__ import annotations

import re
import subprocess
import sys
from itertools import chain
from pathlib import Path
from typing import Any

import pytest
import yaml

from conftest import ROOT, TASKS, Render

if sys.version_info >= (3, 11):
    import tomllib
else:
    import tomli as tomllib

TARGET = re.compile(r"[a-z][a-z-]*")
BOUND = re.compile(r"[\w.-]+>=[\w.]+(; .+)?")


@pytest.fixture(params=["template", "project"])
def folder(request: pytest.FixtureRequest, render: Render) -> Path:
    return ROOT if request.param == "template" else render()


def settings_of(folder: Path) -> dict[str, Any]:
    return tomllib.loads((folder / "pyproject.toml").read_text(encoding="utf-8"))["project"]


def read(path: Path) -> dict[str, Any]:
    return yaml.safe_load(path.read_text(encoding="utf-8"))


def workflows_of(folder: Path) -> list[Path]:
    return sorted((folder / ".github" / "workflows").iterdir())


def jobs_of(folder: Path) -> list[dict[str, Any]]:
    return [job for path in workflows_of(folder) for job in read(path)["jobs"].values()]


def commands_of(folder: Path) -> list[list[str]]:
    steps = [step for job in jobs_of(folder) for step in job["steps"]]
    return [step["run"].split() for step in steps if "run" in step]


def pythons_of(job: dict[str, Any]) -> list[str]:
    """Return the Python versions of a job: those of its matrix, or its single version."""
    matrix = job.get("strategy", {}).get("matrix", {})
    named = [step.get("with", {}).get("python-version") for step in job["steps"]]
    return [*matrix.get("python", []), *(name for name in named if name and "$" not in name)]


def check_schema(schema: str, *paths: Path) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "check_jsonschema", "--builtin-schema", schema]
    return subprocess.run([*command, *map(str, paths)], capture_output=True, text=True, timeout=120)


def lowest_versions(folder: Path) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, str(ROOT / "scripts" / "lowest.py"), str(folder)]
    return subprocess.run(command, capture_output=True, text=True, timeout=60)


def test_workflows_and_other_files_are_valid_by_their_schemas(folder: Path) -> None:
    github = folder / ".github"
    files = {
        "vendor.github-workflows": workflows_of(folder),
        "custom.github-workflows-require-timeout": workflows_of(folder),
        "vendor.dependabot": [github / "dependabot.yml"],
    }
    if folder == ROOT:
        files["vendor.citation-file-format"] = [ROOT / "CITATION.cff"]
    for schema, paths in files.items():
        done = check_schema(schema, *paths)
        assert done.returncode == 0, done.stdout


def test_invalid_workflow_is_detected(tmp_path: Path) -> None:
    wrong = tmp_path / "wrong.yml"
    text = workflows_of(ROOT)[0].read_text(encoding="utf-8")
    wrong.write_text(text.replace("runs-on:", "runs_on:"), encoding="utf-8")
    assert check_schema("vendor.github-workflows", wrong).returncode == 1


def test_make_targets_and_scripts_in_workflows_exist(folder: Path, render: Render) -> None:
    commands = commands_of(folder)
    assert commands
    for command in commands:
        if command[0] == "make":
            place = render() if "-C" in command else folder
            (target,) = (word for word in command[1:] if TARGET.fullmatch(word))
            rules = (place / "Makefile").read_text(encoding="utf-8")
            assert re.search(rf"^{target}:", rules, re.MULTILINE), command
        for word in command:
            if word.endswith(".py"):
                assert (folder / word).is_file(), command


PROOFS = """
import pytest

def test_of_the_model():
    pass

@pytest.mark.proof
def test_of_training():
    pass
"""


def made(project: Path, target: str) -> subprocess.CompletedProcess[str]:
    """Run a target of the project's Makefile in the Python environment of this test."""
    command = ["make", target, f"VENV={sys.prefix}"]
    return subprocess.run(command, cwd=project, capture_output=True, text=True, timeout=300)


@pytest.mark.parametrize("task", TASKS[:1])
def test_make_test_skips_proofs_and_make_test_all_runs_them(task: str, project: Path) -> None:
    for path in (project / "tests").glob("*.py"):
        path.unlink()
    (project / "tests" / "test_some.py").write_text(PROOFS, encoding="utf-8")
    done = made(project, "test")
    assert "1 passed, 1 deselected" in done.stdout, done.stdout + done.stderr
    done = made(project, "test-all")
    assert "2 passed" in done.stdout, done.stdout + done.stderr
    (project / "tests" / "test_some.py").write_text(PROOFS.replace("proof", "prof"), "utf-8")
    done = made(project, "test")
    assert done.returncode != 0 and "'prof' not found in `markers`" in done.stdout, done.stdout


def test_workflows_use_the_lowest_supported_python(folder: Path) -> None:
    lowest = settings_of(folder)["requires-python"].removeprefix(">=")
    used = {tuple(map(int, name.split("."))) for job in jobs_of(folder) for name in pythons_of(job)}
    assert min(used) == tuple(map(int, lowest.split(".")))


def test_only_the_release_job_may_write(folder: Path) -> None:
    for path in workflows_of(folder):
        assert read(path)["permissions"] == {"contents": "read"}
    may_write = [job for job in jobs_of(folder) if "permissions" in job]
    assert [job["permissions"] for job in may_write] == [{"contents": "write"}] * (folder == ROOT)


def test_version_is_the_same_in_all_files() -> None:
    version = settings_of(ROOT)["version"]
    assert read(ROOT / "CITATION.cff")["version"] == version
    assert f"## [{version}]" in (ROOT / "CHANGELOG.md").read_text(encoding="utf-8")


@pytest.mark.parametrize("source", [*TASKS, "template"])
def test_every_dependency_has_a_lowest_version(source: str, render: Render) -> None:
    folder = ROOT if source == "template" else render(task=source)
    done = lowest_versions(folder)
    assert done.returncode == 0, done.stderr
    settings = settings_of(folder)
    stated = [*settings["dependencies"], *settings["optional-dependencies"]["dev"]]
    assert done.stdout.splitlines() == [bound.replace(">=", "==", 1) for bound in stated]
    others = chain.from_iterable(settings["optional-dependencies"].values())
    assert all(BOUND.fullmatch(bound) for bound in others)


def test_dependency_without_a_lower_bound_is_refused(tmp_path: Path) -> None:
    text = '[project]\ndependencies = ["torch"]\noptional-dependencies = { dev = [] }\n'
    (tmp_path / "pyproject.toml").write_text(text, encoding="utf-8")
    done = lowest_versions(tmp_path)
    assert done.returncode == 2
    assert "torch has no lower bound" in done.stderr
