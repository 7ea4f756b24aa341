"""The copy of the template with the delimiters {{ }} renders the same projects.

Its file names are valid on Windows, and cruft can use it.
"""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path, PurePosixPath
from zipfile import ZipFile

import pytest

from conftest import ROOT, SLUG, TEMPLATE, Render, files_of
from hf_template_ext import DEVICES

ODD = 'it\'s "x" \\ {x} % {0} %d 100% # 日本語'

# Text that would be changed incorrectly if each delimiter of Jinja were simply replaced.
TRICKY = """\
{{ x }} {% if x %} {# note #} {{{ x }}} {{%%}} {%- endraw %} ${{ x }}
{<< cookiecutter.task >>} {<<- " a" ->> } << "%>> }} {{" >> << {"a": {"b": 1}}.a.b>>}
   <<% if cookiecutter.task %>>
  {% if %}
   <<%+ endif %>>
   <<# it's a {# nested #} one -#>>

  <<% raw %>>  <<% if %>> {{ raw }} {% endraw %} << x >> <<# {<<% endraw %>>
<<% raw -%>>

  {<<%- endraw %>>
<<% raw %>> <<% endraw %>>   <<% if true %>>yes<<% endif %>>
{"""


def run(*command: str, cwd: Path, typed: str = "") -> subprocess.CompletedProcess[str]:
    """Run a command without the user's settings for Cookiecutter and git."""
    private = {"HOME": str(cwd), "GIT_CONFIG_GLOBAL": os.devnull, "GIT_CONFIG_NOSYSTEM": "1"}
    return subprocess.run(
        command,
        cwd=cwd,
        env={**os.environ, **private},
        input=typed,
        capture_output=True,
        encoding="utf-8",
        timeout=120,
    )


def succeed(*command: str, cwd: Path) -> None:
    done = run(*command, cwd=cwd)
    assert done.returncode == 0, done.stdout + done.stderr


def make_copy(template: Path, out: Path) -> None:
    succeed(sys.executable, str(template / "scripts" / "make_copy.py"), str(out), cwd=out.parent)


def bake_apart(source: Path, out: Path, **answers: str) -> Path:
    """Render in a separate process, since each copy of the template has its own hf_template_ext."""
    given = [f"{name}={value}" for name, value in answers.items()]
    out.mkdir()
    succeed(sys.executable, "-m", "cookiecutter", str(source), "--no-input", *given, cwd=out)
    return out / answers.get("project_slug", SLUG)


def assert_same(first: Path, second: Path) -> None:
    assert files_of(first) == files_of(second)
    for name in files_of(first):
        assert (first / name).read_bytes() == (second / name).read_bytes(), name


def commit(repository: Path) -> None:
    """Commit all files of a folder to a repository in this folder."""
    person = ("-c", "user.name=A", "-c", "user.email=a@example.org")
    succeed("git", "init", "-q", cwd=repository)
    succeed("git", "add", "-A", cwd=repository)
    succeed("git", *person, "commit", "-qm", "next", cwd=repository)


@pytest.fixture(scope="module")
def copy(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("copy") / "hf-template"
    make_copy(ROOT, folder)
    return folder


@pytest.fixture
def template(tmp_path: Path) -> Path:
    """A copy of this template that a test may change."""
    folder = tmp_path / "template"
    for name in (TEMPLATE.name, "hooks", "scripts", "templates"):
        shutil.copytree(ROOT / name, folder / name)
    for name in (".gitattributes", "LICENSE", "cookiecutter.json", "hf_template_ext.py"):
        shutil.copy(ROOT / name, folder)
    return folder


def test_copy_renders_the_same_project(
    task: str, copy: Path, render: Render, tmp_path: Path
) -> None:
    project = bake_apart(copy, tmp_path / "plain", task=task)
    assert_same(project, render(task=task))
    for name in files_of(project):
        assert os.access(project / name, os.X_OK) == os.access(render(task=task) / name, os.X_OK)

    odd = {"project_name": ODD, "description": ODD, "author": ODD, "base_model": "./a b"}
    answers = {"task": task, "project_slug": "odd", **odd}
    for source in (copy, copy.with_suffix(".zip")):
        project = bake_apart(source, tmp_path / f"from{source.suffix}", **answers)
        assert_same(project, render(**answers))


def test_file_names_in_the_archive_are_valid_on_windows(copy: Path) -> None:
    with ZipFile(copy.with_suffix(".zip")) as archive:
        zipped = archive.namelist()
    assert [name for name in zipped if not name.endswith("/")] == [
        f"{copy.name}/{name}" for name in sorted(files_of(copy), key=PurePosixPath)
    ]
    for name in zipped:
        assert not set('<>:"|?*\\').intersection(name) and name.isprintable(), name
        for part in PurePosixPath(name).parts:
            assert part[-1] not in " ." and part.lower().split(".")[0] not in DEVICES.split(), name
    assert len({name.lower() for name in zipped}) == len(zipped)


def test_copy_renders_files_with_delimiters_like_the_template(
    template: Path, tmp_path: Path
) -> None:
    project = template / TEMPLATE.name
    folder = project / "folder"
    folder.mkdir()
    (folder / "tricky.txt").write_text(TRICKY, encoding="utf-8")
    (project / "windows.txt").write_bytes(TRICKY.replace("\n", "\r\n").encode())
    (project / "binary").write_bytes(b"\0\xff << x >> {{ x }}")
    (project / "kept").mkdir()
    (project / "kept" / "page.txt").write_text("<< x >> {{ x }}\r\n", encoding="utf-8", newline="")
    (project / "page.html").write_text("<< x >> {{ x }}", encoding="utf-8")
    (folder / "page.css").write_text("<< x >> {{ x }}", encoding="utf-8")

    questions = template / "cookiecutter.json"
    asked = json.loads(questions.read_text(encoding="utf-8"))
    asked["_copy_without_render"] += ["kept", "*.html", "folder/*.css"]
    asked["_raw"] = "<< x >>"
    asked["__table"] = {"<< cookiecutter.task >>": ["{{ x }}", "<< cookiecutter.author >>"]}
    questions.write_text(json.dumps(asked), encoding="utf-8")
    table = "<< cookiecutter.__table >> << cookiecutter._raw >>"
    (project / "table.txt").write_text(table, encoding="utf-8")

    make_copy(template, tmp_path / "copy")
    expected = bake_apart(template, tmp_path / "ours")
    assert "{classification} { a} %>> }} {{ 1}\n" in (expected / "folder" / "tricky.txt").read_text(
        encoding="utf-8"
    )
    assert_same(bake_apart(tmp_path / "copy", tmp_path / "theirs"), expected)


@pytest.mark.parametrize("answer", ["project_slug=../esc", "base_model=a b", "author=a }}"])
def test_invalid_answer_is_refused(answer: str, copy: Path, tmp_path: Path) -> None:
    done = run(sys.executable, "-m", "cookiecutter", str(copy), "--no-input", answer, cwd=tmp_path)
    assert done.returncode != 0
    assert done.stdout.startswith(answer.split("=")[0]) and "expected" in done.stdout, done.stdout
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("mark", ["<<", "{{", "{%", "{#"])
def test_typed_delimiter_is_refused(mark: str, copy: Path, tmp_path: Path) -> None:
    """cruft renders the saved answers, so an answer must not contain a delimiter of the copy."""
    command = [sys.executable, "-m", "cookiecutter", str(copy)]
    done = run(*command, cwd=tmp_path, typed=f"\na {mark} b\n")
    assert done.returncode != 0
    assert f"holds the template mark {mark}" in " ".join(done.stdout.split()), done.stdout
    assert list(tmp_path.iterdir()) == []


def test_hooks_of_the_copy_work(copy: Path, tmp_path: Path) -> None:
    command = [sys.executable, "-m", "cookiecutter", str(copy)]
    done = run(*command, "--no-input", cwd=tmp_path)
    assert f"{SLUG} (classification) is ready" in done.stderr
    replay = tmp_path / ".cookiecutter_replay" / f"{copy.name}.json"
    answers = json.loads(replay.read_text(encoding="utf-8"))
    answers["cookiecutter"]["project_slug"] = "../esc"
    replay.write_text(json.dumps(answers), encoding="utf-8")
    done = run(*command, "--replay", "-o", "again", cwd=tmp_path)
    assert "project_slug '../esc' is not a project name" in done.stdout
    assert not any((tmp_path / "again").iterdir()) and not (tmp_path / "esc").exists()


def test_earlier_copy_is_replaced(copy: Path, template: Path, tmp_path: Path) -> None:
    """Files that only the earlier copy has are removed."""
    earlier = tmp_path / "earlier"
    (template / "templates" / "seq2seq" / "old.md").write_text("old", encoding="utf-8")
    make_copy(template, earlier)
    (earlier / "hf_template_ext.py").unlink()
    make_copy(ROOT, earlier)
    assert_same(earlier, copy)


def test_folder_that_is_not_a_copy_is_not_changed(copy: Path, tmp_path: Path) -> None:
    (tmp_path / "templates").mkdir()
    (tmp_path / "templates" / "mine").touch()
    command = [sys.executable, str(ROOT / "scripts" / "make_copy.py"), str(tmp_path)]
    done = run(*command, cwd=tmp_path)
    assert done.returncode == 2 and "contains files that this script did not write" in done.stderr
    assert files_of(tmp_path) == ["templates/mine"]


def test_cruft_creates_and_updates_a_project(template: Path, tmp_path: Path) -> None:
    pytest.importorskip("cruft", reason="cruft is not installed (pip install cruft)")
    cruft = (sys.executable, "-m", "cruft")
    copy, project = tmp_path / "copy", tmp_path / SLUG
    make_copy(template, copy)
    commit(copy)
    answers = json.dumps({"task": "seq2seq", "description": ODD, "author": ODD})
    succeed(*cruft, "create", str(copy), "--no-input", "--extra-context", answers, cwd=tmp_path)
    commit(project)
    succeed(*cruft, "check", cwd=project)

    # The user changes one file. The template changes another file, removes one file and adds one.
    (project / "train.py").write_text("# mine\n", encoding="utf-8")
    commit(project)
    ours = template / TEMPLATE.name
    with (ours / "slurm.sh").open("a", encoding="utf-8") as script:
        script.write("# {{ by }} << cookiecutter.author | loud >>\n")
    extension = template / "hf_template_ext.py"
    loud = "def loud(text: str) -> str:\n    return text.upper()\n\n\nclass HFExtension("
    filters = extension.read_text(encoding="utf-8").replace("class HFExtension(", loud)
    filters = filters.replace("filters = (", "filters = (loud, ")
    extension.write_text(filters, encoding="utf-8")
    (ours / "predict.py").unlink()
    (template / "templates" / "seq2seq" / "new.md").write_text("# new {\n", encoding="utf-8")
    (ours / "new.md").write_text('<<% include cookiecutter.task ~ "/new.md" %>>\n', "utf-8")
    make_copy(template, copy)
    commit(copy)

    assert run(*cruft, "check", cwd=project).returncode == 1
    succeed(*cruft, "update", "--skip-apply-ask", cwd=project)
    succeed(*cruft, "check", cwd=project)
    assert (project / "train.py").read_text(encoding="utf-8") == "# mine\n"
    lines = (project / "slurm.sh").read_text(encoding="utf-8").splitlines()
    assert lines[-1] == f"# {{{{ by }}}} {ODD.upper()}"
    assert (project / "new.md").read_text(encoding="utf-8") == "# new {\n"
    assert not (project / "predict.py").exists()
