"""Files of rendered projects: shared by all tasks, without template marks, linted and typed."""

from __future__ import annotations

import ast
import json
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from conftest import ROOT, TASKS, TEMPLATE, Render, about, files_of
from running import run

if sys.version_info >= (3, 11):
    import tomllib
else:
    import tomli as tomllib

# Files and folders that may differ between tasks. All other files are byte-identical.
TASK_OWNED = (
    "README.ja.md",
    "README.md",
    "data/",
    "model/configuration.py",
    "model/dataset.py",
    "model/loss.py",
    "model/metrics.py",
    "model/modeling.py",
    "model/prediction.py",
    "pyproject.toml",
    "tiny/",
)

# Other files in a task's folder: task.json, which the questions and the tests read, and parts that
# the two READMEs and pyproject.toml include.
PARTS = ["dependencies.toml", "result.ja.md", "result.md", "shown.md", "task.json"]
PARTS += ["usage.ja.md", "usage.md"]

INCLUDE = re.compile(r'<<% include cookiecutter\.task ~ "/(.+)" %>>\n')


def includes() -> dict[str, str]:
    """Return the files of the template that consist of one include line, with the included file."""
    lines = {name: (TEMPLATE / name).read_text(encoding="utf-8") for name in files_of(TEMPLATE)}
    found = {name: INCLUDE.fullmatch(line) for name, line in lines.items()}
    return {name: match[1] for name, match in found.items() if match}


def run_tool(folder: Path, *command: str) -> None:
    tool = [sys.executable, "-m", *command]
    done = subprocess.run(tool, cwd=folder, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout + done.stderr


def test_projects_of_every_task_have_the_files_of_the_template(task: str, render: Render) -> None:
    assert files_of(render(task=task)) == files_of(TEMPLATE)


@pytest.mark.skipif(not (ROOT / ".git").exists(), reason="not a git checkout")
def test_template_folder_has_no_files_ignored_by_git() -> None:
    """A run or a tool in the folder of the template writes files that Cookiecutter would copy."""
    command = ["git", "ls-files", "-z", "--cached", "--others", "--exclude-standard", TEMPLATE.name]
    listed = subprocess.run(command, cwd=ROOT, capture_output=True, check=True).stdout.decode()
    known = {name.removeprefix(f"{TEMPLATE.name}/") for name in listed.split("\0") if name}
    assert sorted(set(files_of(TEMPLATE)) - known) == []


def test_task_folders_have_the_same_files() -> None:
    folders = sorted(path.name for path in (ROOT / "templates").glob("[!.]*"))
    assert folders == sorted(TASKS)
    included = sorted(includes().values())
    for task in TASKS:
        assert files_of(ROOT / "templates" / task) == sorted([*included, *PARTS])


def test_included_files_are_rendered_unchanged_except_for_the_base_model(
    task: str, render: Render
) -> None:
    for name, source in includes().items():
        expected = (ROOT / "templates" / task / source).read_bytes()
        expected = expected.replace(b"<< cookiecutter.base_model >>", b"tiny")
        assert (render(task=task) / name).read_bytes() == expected, name


def test_common_files_have_the_same_bytes_for_every_task(render: Render) -> None:
    for name in files_of(TEMPLATE):
        if not name.startswith(TASK_OWNED):
            contents = {(render(task=task) / name).read_bytes() for task in TASKS}
            assert len(contents) == 1, name


def function_of(path: Path, name: str) -> str:
    """Return the source code of a function or method in a file."""
    text = path.read_text(encoding="utf-8")
    (found,) = [n for n in ast.walk(ast.parse(text)) if getattr(n, "name", None) == name]
    return ast.get_source_segment(text, found) or ""


def test_code_repeated_in_two_tasks_is_the_same() -> None:
    """templates/causal_lm/ and templates/chat/ contain copies of the code that both tasks need."""
    decoders = [ROOT / "templates" / task for task in ("causal_lm", "chat")]
    for name in ("loss.py", "tiny/config.json"):
        texts = [(folder / name).read_text(encoding="utf-8") for folder in decoders]
        assert texts[0].replace('"eos_token_id": 1', '"eos_token_id": 2') == texts[1], name
    for file, names in {
        "modeling.py": ["_has_linear_head"],
        "prediction.py": ["_generate", "_ignores_padding"],
    }.items():
        for name in names:
            first, second = (function_of(folder / file, name) for folder in decoders)
            assert first == second, name
    words = {"separate_documents": "packing", "cross documents": "cross conversations"}
    words |= {"The same token ids, shape (batch, length), or -100 where no loss is computed.": ""}
    words |= {"Token ids of the answers, -100 elsewhere, shape (batch, length).": ""}
    for name in ("forward", "on_weights_loaded"):
        sources = [function_of(folder / "modeling.py", name) for folder in decoders]
        for word, other in words.items():
            sources = [source.replace(word, other) for source in sources]
        assert sources[0] == sources[1], name


def test_projects_contain_no_template_marks_and_no_classes_of_other_tasks(
    task: str, render: Render
) -> None:
    other_classes = {about(other)["auto_class"] for other in TASKS} - {about(task)["auto_class"]}
    for name in files_of(render(task=task)):
        text = (render(task=task) / name).read_text(encoding="utf-8")
        for mark in ["cookiecutter", "<<%", "<<#", "<< ", *other_classes]:
            assert mark not in text, f"{name} contains {mark}"


def test_ruff_on_the_template() -> None:
    source = [".", "--no-cache", "--config", "pyproject.toml"]
    run_tool(ROOT, "ruff", "check", *source)
    run_tool(ROOT, "ruff", "format", "--check", *source)


def test_ruff_on_the_project(task: str, render: Render) -> None:
    run_tool(render(task=task), "ruff", "check", "--no-cache", ".")
    run_tool(render(task=task), "ruff", "format", "--check", "--no-cache", ".")


def test_mypy_accepts_every_project_and_reports_wrong_types(render: Render, tmp_path: Path) -> None:
    cache = ["--cache-dir", str(tmp_path / "cache")]  # analyse the libraries only once
    for task in TASKS:
        run_tool(render(task=task), "mypy", *cache)
    project = Path(shutil.copytree(render(task="classification"), tmp_path / "project"))
    wrong = {
        "dataset.py": ("\n) -> Dataset:", "\n) -> list[int]:"),
        "metrics.py": ("def compute(self, loss: float)", "def compute(self, loss: str)"),
        "prediction.py": ("self.columns: list[str]", "self.columns: str"),
    }
    for name, (right, changed) in wrong.items():
        file = project / "model" / name
        code = file.read_text(encoding="utf-8")
        assert code.count(right) == 1
        file.write_text(code.replace(right, changed), encoding="utf-8")
    done = run(project, sys.executable, "-m", "mypy", *cache, code=1)
    for interface in ("TaskDataset", "Scorer", "TaskPredictor"):
        assert re.search(rf"interface_types.*{interface}", done.stdout), done.stdout


@pytest.mark.parametrize("task", TASKS)
@pytest.mark.parametrize("extra", ["dependencies", "dev"])
def test_dev_extra_of_the_template_has_the_dependencies_of_projects(
    render: Render, extra: str, task: str
) -> None:
    ours = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    theirs = tomllib.loads((render(task=task) / "pyproject.toml").read_text(encoding="utf-8"))[
        "project"
    ]
    needed = {**theirs, **theirs["optional-dependencies"]}[extra]
    assert set(needed) <= set(ours["optional-dependencies"]["dev"])


def test_ruff_rules_and_line_length_of_projects_and_of_the_template_are_equal() -> None:
    """Ruff checks the code of a project by the same rules before and after rendering."""
    lines = (TEMPLATE / "pyproject.toml").read_text(encoding="utf-8").splitlines()
    unrendered = "\n".join(line for line in lines if not line.startswith("<<%"))
    ours = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["tool"]["ruff"]
    theirs = tomllib.loads(unrendered)["tool"]["ruff"]
    assert theirs["lint"] == ours["lint"]
    assert theirs["line-length"] == ours["line-length"]


def test_questions_have_prompts() -> None:
    questions = json.loads((ROOT / "cookiecutter.json").read_text(encoding="utf-8"))
    asked = {name for name in questions if not name.startswith("_")}
    assert asked == set(questions["__prompts__"])
    labels = questions["__prompts__"].pop("task")
    assert set(TASKS) >= set(labels) - {"__prompt__"}  # other tasks are shown by their names
    for words in [*labels.values(), *questions["__prompts__"].values()]:
        assert "[" not in words  # rich would interpret [words] as markup and omit them
