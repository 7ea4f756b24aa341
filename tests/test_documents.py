"""Relative links, test names and shown output of documents are valid.

README.md and README.ja.md have the same code.
"""

from __future__ import annotations

import json
import math
import re
import sys
from pathlib import Path

import pytest

from conftest import ROOT, TASKS, Render, files_of

sys.path.insert(0, str(ROOT / "scripts"))

from draw_design import PICTURE, draw  # noqa: E402

BLOCK = re.compile(r"^```(\w*)\n(.*?)^```$", re.DOTALL | re.MULTILINE)
LINK = re.compile(r"\]\(([^)#\s]+)(#[^)\s]*)?\)")
MAX_WORDS = 900  # of the template's README


def read(file: Path) -> str:
    return file.read_text(encoding="utf-8")


def documents() -> list[Path]:
    """Return the documents in the root of the template and in docs/."""
    return [*ROOT.glob("*.md"), *ROOT.glob("docs/**/*.md")]


def anchors(text: str) -> set[str]:
    """Return the anchors that GitHub generates for headings."""
    headings = re.findall(r"^#+ (.+)$", text, re.MULTILINE)
    return {re.sub(r"[^\w\- ]", "", title.lower()).replace(" ", "-") for title in headings}


def broken_links(file: Path) -> list[str]:
    text = read(file)
    broken = []
    for target, anchor in LINK.findall(BLOCK.sub("", text)):
        if "://" in target:
            continue
        path = file.parent / target
        is_known = path.exists()
        if is_known and anchor:
            is_known = anchor[1:] in anchors(read(path))
        if not is_known:
            broken.append(f"{file.name}: {target}{anchor}")
    return broken


def without_comments(code: str) -> list[str]:
    """Return the lines of a code block without comments and file trees, which are translated."""
    lines = [re.sub(r"\s+# .*", "", line).rstrip() for line in code.splitlines()]
    return [line for line in lines if line and line[0] not in "├└│"]


def test_drawing_matches_the_code(render: Render) -> None:
    drawn = draw(render())
    assert drawn == read(PICTURE), "run: python scripts/draw_design.py"


def test_relative_links_of_the_template_are_valid() -> None:
    assert [link for file in documents() for link in broken_links(file)] == []


def test_relative_links_of_a_project_are_valid(task: str, render: Render) -> None:
    project = render(task=task)
    files = [project / name for name in files_of(project) if name.endswith(".md")]
    assert [link for file in files for link in broken_links(file)] == []


def test_readme_of_the_template_is_short() -> None:
    text = read(ROOT / "README.md")
    assert len(text.split()) <= MAX_WORDS


def test_tests_in_the_table_of_promises_exist(render: Render) -> None:
    found = {
        f"{path.name}::{name}"
        for path in (render() / "tests").glob("test_*.py")
        for name in re.findall(r"^def (test_\w+)", read(path), re.MULTILINE)
    }
    text = read(ROOT / "README.md")
    named = re.findall(r"`(test_\w+\.py::test_\w+)`", text)
    assert named
    assert [name for name in named if name not in found] == []


@pytest.mark.parametrize("source", [*TASKS, "template"])
def test_both_languages_show_the_same_code(source: str, render: Render) -> None:
    folder = ROOT if source == "template" else render(task=source)
    english, japanese = (
        [(kind, without_comments(code)) for kind, code in BLOCK.findall(read(folder / name))]
        for name in ("README.md", "README.ja.md")
    )
    assert english == japanese


def test_readme_of_the_template_shows_lines_of_the_shown_run() -> None:
    shown = read(ROOT / "templates" / "seq2seq" / "shown.md").splitlines()
    text = read(ROOT / "README.md")
    (block,) = [code for _, code in BLOCK.findall(text) if "[VALID]" in code]
    lines = [line for line in block.splitlines() if not line.startswith("$")]
    assert [line for line in lines if line not in shown] == []


@pytest.mark.parametrize("task", [name for name in TASKS if name != "causal_lm"])
def test_shown_run_has_the_number_of_steps_of_the_sample_data(task: str) -> None:
    """A run with default arguments has one step per 16 examples in each epoch."""
    folder = ROOT / "templates" / task
    rows = read(folder / "data" / "train.jsonl").count("\n")
    text = read(folder / "shown.md")
    (entry,) = [json.loads(code) for kind, code in BLOCK.findall(text) if kind == "json"]
    assert entry["Epoch 0"]["step"] == math.ceil(rows / 16)


def test_smallest_model_in_the_readme_is_the_tested_one(render: Render) -> None:
    readme = read(render() / "README.md")
    shown = {code for kind, code in BLOCK.findall(readme) if kind == "python"}
    folder = render() / "tests" / "least_contract"
    names = ["configuration.py", "modeling.py", "dataset.py"]
    files = {f"# model/{n}\n" + read(folder / n) for n in names}
    assert shown == files
