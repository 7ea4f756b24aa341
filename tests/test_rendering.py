"""What comes out: which files, the same for every task, without leftovers, clean and small."""

from __future__ import annotations

import ast
import json
import re
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from conftest import ROOT, TASKS, TEMPLATE, Render, files_of

if sys.version_info >= (3, 11):
    import tomllib
else:
    import tomli as tomllib

FILES = [
    ".github/dependabot.yml",
    ".github/workflows/test.yml",
    ".gitignore",
    ".pre-commit-config.yaml",
    "Makefile",
    "README.ja.md",
    "README.md",
    "configs/cpu.yaml",
    "configs/cpus.yaml",
    "configs/ddp.yaml",
    "configs/fsdp2.yaml",
    "configs/gpu.yaml",
    "configs/nodes.yaml",
    "configs/zero2.yaml",
    "configs/zero3.yaml",
    "data/LICENSE.md",
    "data/train.jsonl",
    "data/valid.jsonl",
    "model/__init__.py",
    "model/configuration.py",
    "model/dataset.py",
    "model/loss.py",
    "model/metrics.py",
    "model/modeling.py",
    "model/prediction.py",
    "predict.py",
    "pyproject.toml",
    "reading/__init__.py",
    "reading/faults.py",
    "reading/tables.py",
    "reading/tokens.py",
    "reporting/__init__.py",
    "reporting/card.py",
    "reporting/curves.py",
    "reporting/help.py",
    "reporting/hub.py",
    "reporting/preview.py",
    "reporting/progress.py",
    "reporting/report.py",
    "scaling/__init__.py",
    "scaling/epochs.py",
    "scaling/memory.py",
    "scaling/optimizer_state.py",
    "scaling/sharding.py",
    "scaling/zero.py",
    "slurm.sh",
    "tests/conftest.py",
    "tests/killing.py",
    "tests/launching.py",
    "tests/measure.py",
    "tests/outcome.py",
    "tests/real_runs.py",
    "tests/test_configs.py",
    "tests/test_deepspeed.py",
    "tests/test_divergence.py",
    "tests/test_elsewhere.py",
    "tests/test_epochs.py",
    "tests/test_exactness.py",
    "tests/test_faults.py",
    "tests/test_hostile_data.py",
    "tests/test_input.py",
    "tests/test_interruption.py",
    "tests/test_kills.py",
    "tests/test_memory.py",
    "tests/test_model.py",
    "tests/test_precision.py",
    "tests/test_predict.py",
    "tests/test_reporting.py",
    "tests/test_runs.py",
    "tests/test_sharded_runs.py",
    "tests/test_sharding.py",
    "tests/test_trust.py",
    "tiny/config.json",
    "tiny/tokenizer.json",
    "tiny/tokenizer_config.json",
    "train.py",
    "training/__init__.py",
    "training/arguments.py",
    "training/batches.py",
    "training/checkpoint.py",
    "training/files.py",
    "training/interruption.py",
    "training/launch.py",
    "training/loading.py",
    "training/lock.py",
    "training/losses.py",
    "training/optimization.py",
    "training/peers.py",
    "training/randomness.py",
    "training/state.py",
]

# What may differ between the tasks; a folder ends in a slash. The rest is the same, byte for byte.
TASK_OWNED = (
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

# Parts of a task's folder that README.md and pyproject.toml include among other lines.
PARTS = ["dependencies.toml", "shown.md", "usage.md"]

# Lines a file may have: the first entry that fits its path.
MAX_LINES = {"train.py": 200, "model/": 119, "": 199}
# Of code: in what a run's result depends on, and in what tells of it and uses it.
MAX_LINES_IN_ALL = {"": 1699, "reporting/": 399, "scaling/": 319, "predict.py": 99}
MAX_LINES_OF_FUNCTION = 60
MAX_NESTING = 3

# The kind of model that a task registers, such as ForCausalLM: no other task may name it.
MODEL_CLASS = re.compile(r'register_for_auto_class\("AutoModel(For\w+)"\)')
INCLUDE = re.compile(r'<<% include cookiecutter\.task ~ "/(.+)" %>>\n')
COMPOUND = (ast.If, ast.For, ast.AsyncFor, ast.While, ast.With, ast.AsyncWith, ast.Try, ast.Match)


def includes() -> dict[str, str]:
    """The files of the template that are one include line, with the file they include."""
    lines = {name: (TEMPLATE / name).read_text(encoding="utf-8") for name in files_of(TEMPLATE)}
    found = {name: INCLUDE.fullmatch(line) for name, line in lines.items()}
    return {name: match[1] for name, match in found.items() if match}


def model_class(task: str) -> str:
    code = (ROOT / "templates" / task / "modeling.py").read_text(encoding="utf-8")
    (name,) = MODEL_CLASS.findall(code)
    return name


def code_of(project: Path) -> dict[str, str]:
    """The project's Python files without its tests."""
    names = (name for name in files_of(project) if name.endswith(".py"))
    return {
        name: (project / name).read_text(encoding="utf-8")
        for name in names
        if not name.startswith("tests/")
    }


def functions_of(code: str) -> Iterator[ast.FunctionDef | ast.AsyncFunctionDef]:
    for node in ast.walk(ast.parse(code)):
        if isinstance(node, (ast.FunctionDef, ast.AsyncFunctionDef)):
            yield node


def lines_of_code(code: str) -> int:
    """Lines that are neither blank nor a comment nor part of a docstring."""
    docstrings: set[int] = set()
    for node in ast.walk(ast.parse(code)):
        if isinstance(node, (ast.Module, ast.ClassDef, ast.FunctionDef)) and ast.get_docstring(
            node
        ):
            text = node.body[0]
            docstrings.update(range(text.lineno, (text.end_lineno or 0) + 1))
    lines = enumerate(map(str.strip, code.splitlines()), 1)
    return sum(bool(line) and line[0] != "#" and n not in docstrings for n, line in lines)


def nesting(statements: list[ast.stmt]) -> int:
    """How deep compound statements stand inside each other; an elif is as deep as its if."""
    deepest = 0
    for statement in statements:
        if not isinstance(statement, COMPOUND):
            continue
        blocks = [getattr(statement, name, []) for name in ("body", "finalbody")]
        blocks += [part.body for part in getattr(statement, "handlers", [])]
        blocks += [part.body for part in getattr(statement, "cases", [])]
        orelse = getattr(statement, "orelse", [])
        if isinstance(statement, ast.If) and len(orelse) == 1 and isinstance(orelse[0], ast.If):
            deepest = max(deepest, nesting(orelse))
        else:
            blocks.append(orelse)
        deepest = max([deepest, *(1 + nesting(block) for block in blocks)])
    return deepest


def run_tool(folder: Path, *command: str) -> None:
    tool = [sys.executable, "-m", *command]
    done = subprocess.run(tool, cwd=folder, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout + done.stderr


def test_exact_files(task: str, render: Render) -> None:
    assert files_of(render(task=task)) == files_of(TEMPLATE)
    assert files_of(TEMPLATE) == FILES


def test_task_folders_agree() -> None:
    folders = sorted(path.name for path in (ROOT / "templates").glob("[!.]*"))
    assert folders == sorted(TASKS)
    included = sorted(includes().values())
    for task in TASKS:
        assert files_of(ROOT / "templates" / task) == sorted([*included, *PARTS])


def test_included_files_keep_their_bytes(task: str, render: Render) -> None:
    for name, source in includes().items():
        expected = (ROOT / "templates" / task / source).read_bytes()
        expected = expected.replace(b"<< cookiecutter.base_model >>", b"tiny")
        assert (render(task=task) / name).read_bytes() == expected, name


def test_same_bytes_for_every_task(render: Render) -> None:
    for name in files_of(TEMPLATE):
        if not name.startswith(TASK_OWNED):
            contents = {(render(task=task) / name).read_bytes() for task in TASKS}
            assert len(contents) == 1, name


def test_no_leftovers(task: str, render: Render) -> None:
    other_classes = [model_class(other) for other in TASKS if other != task]
    for name in files_of(render(task=task)):
        text = (render(task=task) / name).read_text(encoding="utf-8")
        for mark in ["cookiecutter", "<<%", "<<#", "<< ", *other_classes]:
            assert mark not in text, f"{name} holds {mark}"


def test_no_fault_in_the_template_itself() -> None:
    source = [".", "--no-cache", "--config", "pyproject.toml"]
    run_tool(ROOT, "ruff", "check", *source)
    run_tool(ROOT, "ruff", "format", "--check", *source)


def test_ruff_on_the_project(task: str, render: Render) -> None:
    run_tool(render(task=task), "ruff", "check", "--no-cache", ".")
    run_tool(render(task=task), "ruff", "format", "--check", "--no-cache", ".")


def test_mypy_on_every_project(render: Render, tmp_path: Path) -> None:
    for task in TASKS:  # one after the other: the libraries are analysed once
        run_tool(render(task=task), "mypy", "--cache-dir", str(tmp_path))


def test_sizes(task: str, render: Render) -> None:
    code = code_of(render(task=task))
    for name, text in code.items():
        limit = next(lines for start, lines in MAX_LINES.items() if name.startswith(start))
        assert len(text.splitlines()) <= limit, name
    sums = dict.fromkeys(MAX_LINES_IN_ALL, 0)
    for name, text in code.items():
        room = max((start for start in sums if name.startswith(start)), key=len)
        sums[room] += lines_of_code(text)
    assert all(sums[room] <= limit for room, limit in MAX_LINES_IN_ALL.items()), sums


def test_functions_are_short_and_flat(task: str, render: Render) -> None:
    for name, text in code_of(render(task=task)).items():
        for function in functions_of(text):
            lines = (function.end_lineno or 0) - function.lineno + 1
            assert lines <= MAX_LINES_OF_FUNCTION, f"{name}: {function.name}"
            assert nesting(function.body) <= MAX_NESTING, f"{name}: {function.name}"


def test_nesting_is_counted() -> None:
    flat = "if a:\n    pass\nelif b:\n    pass\nelse:\n    for c in d:\n        pass\n"
    deep = "try:\n    a\nexcept OSError:\n    with a:\n        match b:\n            case 1: c\n"
    assert nesting(ast.parse(flat).body) == 2
    assert nesting(ast.parse(deep).body) == 3


@pytest.mark.parametrize("extra", ["dependencies", "dev"])
def test_our_environment_serves_the_projects(render: Render, extra: str) -> None:
    ours = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    theirs = tomllib.loads((render() / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    needed = {**theirs, **theirs["optional-dependencies"]}[extra]
    assert set(needed) <= set(ours["optional-dependencies"]["dev"])


def test_unrendered_settings_are_readable() -> None:
    """The rendered project is checked by the same rules as its unrendered source."""
    lines = (TEMPLATE / "pyproject.toml").read_text(encoding="utf-8").splitlines()
    unrendered = "\n".join(line for line in lines if not line.startswith("<<%"))
    ours = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["tool"]["ruff"]
    theirs = tomllib.loads(unrendered)["tool"]["ruff"]
    assert theirs["lint"] == ours["lint"]
    assert theirs["line-length"] == ours["line-length"]


def test_questions_have_words() -> None:
    questions = json.loads((ROOT / "cookiecutter.json").read_text(encoding="utf-8"))
    asked = {name for name in questions if not name.startswith("_")}
    assert asked == set(questions["__prompts__"])
    labels = questions["__prompts__"].pop("task")
    assert set(TASKS) == set(labels) - {"__prompt__"}
    for words in [*labels.values(), *questions["__prompts__"].values()]:
        assert "[" not in words  # rich would take [words] for markup and drop them
