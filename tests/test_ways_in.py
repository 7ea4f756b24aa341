"""Different ways to render, and older supported versions of cookiecutter, give equal projects."""

from __future__ import annotations

import json
import os
import shlex
import shutil
import subprocess
import sys
import venv
from pathlib import Path

import pytest

from conftest import ROOT, SLUG, TASKS, TEMPLATE, Render, Shell, contents

ANSWERS = {
    "task": "seq2seq",
    "project_name": "Žluť 模型",
    "description": 'It\'s {x} \\ "so"',
    "base_model": "org/name",
}
PAIRS = [f"{name}={value}" for name, value in ANSWERS.items()]
MADE = "zlut-mo-xing"
PIP = [sys.executable, "-m", "pip"]
OTHER_EXTENSION = """
from jinja2.ext import Extension

class Loud(Extension):
    def __init__(self, environment):
        super().__init__(environment)
        environment.filters["loud"] = str.upper
"""


@pytest.fixture
def expected(render: Render) -> dict[str, bytes]:
    return contents(render(project_slug=MADE, **ANSWERS))


@pytest.fixture
def config(shell: Shell) -> str:
    path = shell.home / "config.yaml"
    path.write_text(json.dumps({"default_context": ANSWERS}), encoding="utf-8")
    return str(path)


def git(folder: Path, *arguments: str | Path) -> None:
    who = ["-c", "user.name=Test", "-c", "user.email=test@example.org"]
    subprocess.run(["git", *who, *arguments], cwd=folder, check=True, capture_output=True)


@pytest.fixture(scope="module")
def sources(tmp_path_factory: pytest.TempPathFactory) -> dict[str, list[str]]:
    """Arguments of cookiecutter for each source of the template: a checkout, a zip file, or git.

    The git repository has a commit after the tag v1.
    """
    folder = tmp_path_factory.mktemp("sources")
    checkout = folder / "hf-template"
    for part in ("hooks", "templates", TEMPLATE.name):
        ignored = shutil.ignore_patterns("__pycache__", ".*_cache")
        shutil.copytree(ROOT / part, checkout / part, ignore=ignored)
    for part in (".gitattributes", "cookiecutter.json", "hf_template_ext.py"):
        shutil.copy(ROOT / part, checkout)
    git(checkout, "init", "--quiet")
    git(checkout, "add", "--all")
    git(checkout, "commit", "--quiet", "-m", "One")
    git(checkout, "tag", "v1")
    archive, bare = folder / "hf-template.zip", folder / "hf-template.git"
    git(checkout, "archive", "--prefix=hf-template-1/", "-o", archive, "v1")
    git(checkout, "rm", "--quiet", "-r", TEMPLATE.name)
    git(checkout, "commit", "--quiet", "-m", "Two")
    git(checkout, "clone", "--quiet", "--bare", checkout, bare)
    git(checkout, "checkout", "--quiet", "v1")
    return {
        "checkout": [str(checkout)],
        "zip": [str(archive)],
        "git": [f"file://{bare}", "-c", "v1"],
    }


@pytest.mark.parametrize("source", ["checkout", "zip", "git"])
def test_each_source_of_the_template_gives_the_same_project(
    source: str, sources: dict[str, list[str]], shell: Shell, expected: dict[str, bytes]
) -> None:
    template, *options = sources[source]
    done = shell.run(*options, "--no-input", *PAIRS, template=template)
    assert done.returncode == 0, done.stdout + done.stderr
    assert contents(shell.here / MADE) == expected


def set_autocrlf(home: Path) -> None:
    """Make git write CRLF line endings on checkout, as Git for Windows does by default."""
    (home / ".gitconfig").write_text("[core]\n\tautocrlf = true\n", encoding="utf-8")


def test_template_from_git_that_writes_crlf_gives_the_same_project(
    sources: dict[str, list[str]], shell: Shell, expected: dict[str, bytes]
) -> None:
    set_autocrlf(shell.home)
    template, *options = sources["git"]
    done = shell.run(*options, "--no-input", *PAIRS, template=template)
    assert done.returncode == 0, done.stdout + done.stderr
    assert contents(shell.here / MADE) == expected


def test_git_that_writes_crlf_changes_the_files_of_a_project_only_to_lf(
    project: Path, shell: Shell
) -> None:
    """Code gets LF line endings; data, models and images keep every byte."""
    for name in ("data/windows.csv", "tiny/vocabulary.txt"):
        (project / name).write_bytes(b"text,label\r\na,b\n")
    (project / "loss.png").write_bytes(b"\x89PNG\r\n\x1a\n text \r\n")
    (project / "mine.py").write_bytes(b"x = 1\r\n")
    before = contents(project)
    set_autocrlf(shell.home)
    commands = [
        ["init", "-q"],
        ["add", "--all"],
        ["commit", "-qm", "One"],
        ["clone", "-q", ".", "a"],
    ]
    for command in commands:
        who = ["-c", "user.name=Test", "-c", "user.email=test@example.org"]
        done = subprocess.run(
            ["git", *who, *command], cwd=project, env=shell.environment, capture_output=True
        )
        assert done.returncode == 0, done.stderr
    shutil.rmtree(project / "a" / ".git")
    assert contents(project / "a") == {**before, "mine.py": b"x = 1\n"}


@pytest.mark.parametrize("name", ["hooks", "scripts", "templates", "tests"])
def test_other_package_with_the_name_of_a_template_folder_is_not_imported(
    name: str, shell: Shell, expected: dict[str, bytes]
) -> None:
    """The template's folder is the last entry of sys.path, so another package is found first."""
    package = shell.home / name
    package.mkdir()
    (package / "__init__.py").write_text("raise SystemExit('wrong package')\n", encoding="utf-8")
    done = shell.run("--no-input", *PAIRS, PYTHONPATH=str(shell.home))
    assert done.returncode == 0, done.stdout + done.stderr
    assert contents(shell.here / MADE) == expected


@pytest.mark.parametrize("name", ["contextlib", "shlex"])
def test_module_among_temporary_files_does_not_break_the_hooks(name: str, shell: Shell) -> None:
    """Cookiecutter copies hooks into the folder for temporary files, and runs the copies.

    Python would first look for modules in this folder.
    """
    (shell.home / f"{name}.py").write_text("raise SystemExit('wrong module')\n", encoding="utf-8")
    done = shell.run("--no-input", TMPDIR=str(shell.home))
    assert done.returncode == 0 and f"{SLUG} (classification) is ready" in done.stderr, done.stderr


def test_two_templates_in_one_process_use_their_own_extensions(
    render: Render, tmp_path: Path
) -> None:
    """pytest-cookies renders several templates in one process."""
    other = tmp_path / "other"
    shutil.copytree(ROOT / "hooks", other / "hooks")
    (other / "hooks" / "__init__.py").touch()
    (other / "{{cookiecutter.name}}").mkdir()
    (other / "{{cookiecutter.name}}" / "a.txt").write_text("{{ 'a' | loud }}", encoding="utf-8")
    (other / "hooks" / "other_ext.py").write_text(OTHER_EXTENSION, encoding="utf-8")
    questions = {"name": "other-project", "_extensions": ["hooks.other_ext.Loud"]}
    (other / "cookiecutter.json").write_text(json.dumps(questions), encoding="utf-8")
    code = f"""
from cookiecutter.main import cookiecutter
for template in ({str(other)!r}, {str(ROOT)!r}, {str(other)!r}):
    cookiecutter(template, no_input=True, default_config=True, overwrite_if_exists=True)
"""
    done = subprocess.run(
        [sys.executable, "-c", code], cwd=tmp_path, capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr
    assert contents(tmp_path / SLUG) == contents(render())
    assert (tmp_path / "other-project" / "a.txt").read_text(encoding="utf-8") == "A"


@pytest.mark.parametrize("folder", ["exp [1]", "a{b}*", "$HOME 'q' 模型"])
def test_folders_with_unusual_names_give_the_same_project(
    folder: str, sources: dict[str, list[str]], shell: Shell, expected: dict[str, bytes]
) -> None:
    """The template and the project are in a folder whose name has special characters."""
    template = shell.here / folder / "hf-template"
    shutil.copytree(sources["checkout"][0], template)
    done = shell.run("-o", folder, "--no-input", *PAIRS, template=template)
    assert done.returncode == 0, done.stdout + done.stderr
    made = shell.here / folder / MADE
    assert contents(made) == expected
    done = subprocess.run(["make", "help"], cwd=made, capture_output=True, text=True)
    assert done.returncode == 0 and "make train" in done.stdout, done.stderr
    assert (
        f"cd {shlex.quote(str(made))}"
        in shell.run("-o", folder, "-f", "--no-input", *PAIRS, template=template).stderr
    )


def test_replay_gives_the_same_project(shell: Shell, expected: dict[str, bytes]) -> None:
    assert shell.run("--no-input", *PAIRS).returncode == 0
    replay = shell.home / ".cookiecutter_replay" / f"{ROOT.name}.json"
    kept = shell.home / "kept.json"
    shutil.copy(replay, kept)
    assert shell.run("--replay", "-o", "again").returncode == 0
    replay.unlink()
    assert shell.run("--replay-file", str(kept), "-o", "by-file").returncode == 0
    for folder in (shell.here, shell.here / "again", shell.here / "by-file"):
        assert contents(folder / MADE) == expected


def test_answers_in_a_settings_file_are_used_without_questions(
    config: str, shell: Shell, expected: dict[str, bytes]
) -> None:
    assert shell.run("--config-file", config, "--no-input").returncode == 0
    assert contents(shell.here / MADE) == expected


def test_answers_in_a_settings_file_are_the_defaults_of_the_questions(
    config: str, shell: Shell, expected: dict[str, bytes]
) -> None:
    done = shell.run("--config-file", config, typed="\n" * 6)
    assert done.returncode == 0, done.stdout + done.stderr
    assert "1 - seq2seq" in done.stdout  # the user's default is the first choice
    assert contents(shell.here / MADE) == expected


def with_cookiecutter(version: str, folder: Path) -> Path:
    """Return the Python interpreter of a new environment with this version of cookiecutter."""
    if version not in ("2.5.0", "2.6.0") and "TEST_ALL" not in os.environ:
        pytest.skip("run by make test-all only")
    venv.create(folder)
    python = folder / "bin" / "python"
    quick = ["--quiet", "--retries", "0", "--timeout", "20", "--disable-pip-version-check"]
    done = subprocess.run(
        [*PIP, "--python", python, "install", *quick, f"cookiecutter=={version}"],
        capture_output=True,
        text=True,
        timeout=300,
    )
    if done.returncode:
        pytest.skip(f"cookiecutter {version} cannot be installed: {done.stderr[-200:]}")
    return python


@pytest.mark.parametrize("version", ["2.1.1", "2.3.0", "2.5.0"])
def test_cookiecutter_that_is_too_old_is_refused_in_one_line(
    version: str, shell: Shell, tmp_path: Path
) -> None:
    done = shell.run(python=with_cookiecutter(version, tmp_path / "venv"))
    assert done.returncode == 1
    assert done.stdout == (
        "Unable to load extension: hf-template needs cookiecutter 2.6.0 or newer; the installed "
        f"version is {version}: pip install --upgrade cookiecutter\n"
    )
    assert done.stderr == ""
    assert list(shell.here.iterdir()) == []


@pytest.mark.parametrize("version", ["2.6.0", "2.7.0"])
def test_older_supported_cookiecutter_gives_the_same_projects(
    version: str, shell: Shell, render: Render, tmp_path: Path
) -> None:
    python = with_cookiecutter(version, tmp_path / "venv")
    for number, task in enumerate(TASKS, start=1):
        done = shell.run("-o", task, python=python, typed=f"{number}\n\n\n\n\n\n")
        assert done.returncode == 0, done.stdout + done.stderr
        assert contents(shell.here / task / SLUG) == contents(render(task=task))
    done = shell.run("--no-input", "author=<< 7*7 >>", python=python)
    assert done.stdout.startswith("The text '<< 7*7 >>' holds a template mark;")
