"""Other tools load checkpoints, with the commands of a project's README, and get equal results.

Tests of tools that are not installed are skipped. `pip install -e '.[dev]'` installs the tools that
`make test` needs. The other tools need much disk space or other versions of packages;
`make test-all` tests them if they are installed. Most scripts of tests/tools/ run in an empty
folder.
"""

from __future__ import annotations

import importlib.util
import json
import os
import re
import shlex
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from conftest import ROOT, SLUG, Render, about
from running import run, run_python

TOOLS = Path(__file__).parent / "tools"
SHORT = ["--max_steps", "20", "--valid_steps", "20", "--batch_size", "8"]
FORKED = ("peft", "ctranslate2", "onnxruntime")  # the others may start processes of their own
TEXTS = ["See you at lunch", "FREE entry! Text WIN to claim your prize"]
SCORES = """
import json, sys
from transformers import pipeline
classify = pipeline("text-classification", model=sys.argv[1])
found = [(text, *classify(text)[0].values()) for text in sys.argv[2:]]
print(json.dumps(found))
"""
heavy = pytest.mark.skipif("TEST_ALL" not in os.environ, reason="run by make test-all only")


def needs(*modules: str) -> pytest.MarkDecorator:
    missing = [name for name in modules if not importlib.util.find_spec(name)]
    return pytest.mark.skipif(bool(missing), reason=f"not installed: {', '.join(missing)}")


def try_tool(folder: Path, name: str, *arguments: str | Path) -> None:
    """Run a script of tests/tools/ in an empty folder, without the modules of a project."""
    empty = folder / "empty"
    empty.mkdir()
    command = (TOOLS / f"with_{name}.py", *arguments)
    if name in FORKED:
        run_python(empty, *command)
    else:
        run(empty, sys.executable, *command)


def command_of(project: Path, tool: str) -> str:
    """Return the command for a tool in the README, with the path of the project's checkpoint."""
    text = (project / "README.md").read_text(encoding="utf-8")
    (command,) = re.findall(rf"^\| {re.escape(tool)} \| `([^`]+)` \|", text, re.MULTILINE)
    return command.replace("outputs/best", str(project / "outputs" / "best"))


@pytest.fixture(scope="module")
def trained(render: Render, tmp_path_factory: pytest.TempPathFactory) -> Callable[..., Path]:
    """Return a function: trained("seq2seq") returns a shared project with a run in outputs/."""
    projects: dict[tuple[str, str | None], Path] = {}

    def project_of(task: str, recipe: str | None = None) -> Path:
        if (task, recipe) not in projects:
            project = tmp_path_factory.mktemp(task) / SLUG
            shutil.copytree(render(task=task), project)
            if recipe:
                model = ROOT / "docs" / "recipes" / recipe / "model"
                shutil.copytree(model, project / "model", dirs_exist_ok=True)
            run_python(project, "train.py", *SHORT)
            projects[task, recipe] = project
        return projects[task, recipe]

    return project_of


@pytest.fixture(scope="module")
def onnx(trained: Callable[..., Path]) -> Callable[[], Path]:
    """Return a function: onnx() returns the folder that the command for ONNX Runtime writes."""

    def folder() -> Path:
        project = trained("classification")
        if not (project / "exported").exists():
            _, *words = shlex.split(command_of(project, "ONNX Runtime"))
            run_python(project, *words)
        return project / "exported"

    return folder


@needs("peft")
@pytest.mark.parametrize(
    ("task", "recipe"),
    [
        ("causal_lm", None),
        pytest.param("classification", None, marks=heavy),
        pytest.param("token_classification", None, marks=heavy),
        pytest.param("seq2seq", None, marks=heavy),
        pytest.param("classification", "pooling", marks=heavy),  # with code in the checkpoint
    ],
)
def test_peft_saves_loads_and_merges_an_adapter(
    task: str, recipe: str | None, trained: Callable[..., Path], tmp_path: Path
) -> None:
    best = trained(task, recipe) / "outputs" / "best"
    assert (best / "modeling.py").exists() == (recipe is not None)
    try_tool(tmp_path, "peft", best, about(task)["auto_class"])


@needs("ctranslate2")
@pytest.mark.parametrize("task", ["causal_lm", "seq2seq"])
def test_ctranslate2_computes_the_same_scores_and_tokens(
    task: str, trained: Callable[..., Path], tmp_path: Path
) -> None:
    project = trained(task)
    program, *words = shlex.split(command_of(project, "CTranslate2"))
    run(tmp_path, Path(sys.executable).parent / program, *words)
    try_tool(tmp_path, "ctranslate2", project / "outputs" / "best", tmp_path / "ct2")


@needs("onnx", "onnxruntime", "onnxscript")
def test_onnx_runtime_computes_the_same_logits(onnx: Callable[[], Path], tmp_path: Path) -> None:
    try_tool(tmp_path, "onnxruntime", onnx())


@heavy
@needs("onnx", "onnxruntime", "onnxscript")
def test_transformers_js_computes_the_same_scores(onnx: Callable[[], Path], tmp_path: Path) -> None:
    """NODE_PATH must be the folder node_modules that contains transformers.js."""
    node = shutil.which("node")
    package = "require.resolve('@huggingface/transformers')"
    if not node or subprocess.run([node, "-e", package], capture_output=True).returncode:
        pytest.skip("not installed: node, or @huggingface/transformers in NODE_PATH")
    expected = run(tmp_path, sys.executable, "-c", SCORES, onnx(), *TEXTS).stdout.splitlines()[-1]
    assert len(json.loads(expected)) == len(TEXTS)
    run(tmp_path, node, TOOLS / "with_transformers_js.cjs", onnx(), expected)


@heavy
@pytest.mark.parametrize(
    ("tool", "row"), [("lm_eval", "lm-evaluation-harness"), ("serve", "`transformers serve`")]
)
def test_commands_of_the_readme_for_a_language_model_work(
    tool: str, row: str, trained: Callable[..., Path], tmp_path: Path
) -> None:
    modules = {"lm_eval": ["lm_eval"], "serve": ["fastapi", "uvicorn", "openai"]}[tool]
    if any(not importlib.util.find_spec(name) for name in modules):
        pytest.skip(f"not installed: {', '.join(modules)}")
    project = trained("causal_lm")
    try_tool(tmp_path, tool, project / "outputs" / "best", command_of(project, row))


@heavy
@pytest.mark.parametrize("tool", ["trl", "vllm"])
def test_trl_and_vllm_load_a_language_model(
    tool: str, trained: Callable[..., Path], tmp_path: Path
) -> None:
    pytest.importorskip(tool, reason=f"not installed: {tool}")
    try_tool(tmp_path, tool, trained("causal_lm") / "outputs" / "best")


@heavy
@needs("torchao")
def test_torchao_loads_a_checkpoint_in_int8(
    task: str, trained: Callable[..., Path], tmp_path: Path
) -> None:
    try_tool(tmp_path, "torchao", trained(task) / "outputs" / "best", about(task)["auto_class"])


@heavy
@needs("sentence_transformers")
def test_sentence_transformers_loads_the_model_without_its_head(
    trained: Callable[..., Path], tmp_path: Path
) -> None:
    try_tool(tmp_path, "sentence_transformers", trained("classification") / "outputs" / "best")


@heavy
@pytest.mark.parametrize("tool", ["optuna", "ray"])
def test_libraries_that_call_main_get_the_same_loss(
    tool: str, render: Render, tmp_path: Path
) -> None:
    if not importlib.util.find_spec(tool):
        pytest.skip(f"not installed: {tool}")
    project = Path(shutil.copytree(render(task="classification"), tmp_path / SLUG))
    run(project, sys.executable, TOOLS / f"with_{tool}.py")


def test_commands_printed_by_export_py_are_in_the_readme(
    task: str, trained: Callable[..., Path], tmp_path: Path
) -> None:
    project = trained(task)
    output = tmp_path / "exported"
    options = ["--output", str(output), "--dtype", "bfloat16"]
    printed = run_python(project, "export.py", *options).stdout
    _, *commands = printed.partition("parameters in bfloat16")[2].splitlines()
    readme = (project / "README.md").read_text(encoding="utf-8")
    for command in commands:
        command = command.replace(f"{output}-ct2", "ct2").replace(str(output), "outputs/best")
        assert f"`{command}`" in readme, command
    assert bool(commands) == ("Classification" not in about(task)["auto_class"])
