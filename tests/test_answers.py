"""Unusual answers are preserved; invalid answers are refused before a file is written."""

from __future__ import annotations

import ast
import json
import os
import subprocess
import sys
from functools import cache
from pathlib import Path

import pytest
import yaml
from cookiecutter.exceptions import FailedHookException
from hypothesis import given, settings, strategies as st
from slugify import slugify

from conftest import ROOT, SLUG, TASKS, Render, Shell, bake, files_of
from hf_template_ext import PROBLEMS, check, lit, slug_problem, usable_slug

if sys.version_info >= (3, 11):
    import tomllib
else:
    import tomli as tomllib

ODD_TEXTS = [
    "plain",
    'say "hello"',
    "it's",
    '"',
    "'",
    '"""',
    "'''",
    'ends in """',
    "\\",
    "\\\\",
    "ends in \\",
    'ends in \\"',
    "\\n is no newline",
    "\\u0041 \\x41 \\N{DASH} \\101",
    "C:\\new\\table\\user",
    "{",
    "}",
    "{name}",
    "{0!r:>10}",
    "%s %d %(name)s %%",
    "$HOME ${HOME} $(id) $$",
    "`id`",
    "; rm -rf / #",
    "a && b || c | d",
    "> out < in",
    "a < b > c",
    "<b>bold</b> &amp; <!-- note -->",
    "[link](http://example.org) **bold** _it_",
    "# heading",
    "- item",
    "key: value",
    "key = value",
    "[table]",
    "a, b; c",
    "yes",
    "null",
    "1e3",
    "0x10",
    "007",
    "-1",
    "---",
    "...",
    "*anchor &ref !tag",
    "@at ?what |pipe",
    "~",
    "  spaces around  ",
    "日本語の　モデル",
    "Žluťoučký kůň",
    "مرحبا بالعالم",
    "שלום",
    "ไทย हिन्दी",
    "e\u0301 combining",
    "🤗 transformers",
    "👩‍💻 joined, 🏳️‍🌈 too",
    "no\u00a0break",
    "zero\u200bwidth",
    "soft\u00adhyphen",
    "private \ue000 use",
    "astral 𝕏 \U0010ffff",
    "x" * 200,
    "模" * 200,
    "{ { % } }",
    "import os",
    "None",
    "__import__('os').system('id')",
    "'; DROP TABLE runs; --",
    "../../etc/passwd",
    "--help",
    "\ufffd",
]

BAD_TEXTS = [
    "",
    " ",
    "\u3000",
    "\t",
    "two\nlines",
    "ends\n",
    "carriage\rreturn",
    "crlf\r\n",
    "tab\tbed",
    "nul\0",
    "bell\a",
    "escape \x1b[31m",
    "unit\x1fseparator",
    "delete\x7f",
    "next line\x85",
    "c1 \x9b",
    "line\u2028separator",
    "paragraph\u2029separator",
    "right\u202eto left",
    "isolate\u2066d",
    "mark\u200f",
    "left\u200e",
    "arabic\u061cmark",
    "\ufeffbyte order mark",
    "non\ufffecharacter",
    "lone \ud83d",
    "lone \udc80",
    "x" * 201,
    "<< 7*7 >>",
    "a << b",
    "a >> b",
    "<<% if x %>>",
    "<<# note #>>",
    "{{ 7*7 }}",
    "{{",
    "}}",
    "{% raw %}",
    "%}",
    "{# note #}",
    "{#",
    "#}",
    "{{{",
]

BAD_SLUGS = [
    "",
    " ",
    ".",
    "..",
    "../esc",
    "/etc",
    "/",
    "a/b",
    "a\\b",
    "~",
    "~/x",
    "C:\\x",
    "-",
    "-rf",
    "--help",
    "a-",
    "a--b",
    "a_b",
    "_a",
    "a b",
    " a",
    "a ",
    "a.b",
    "a,b",
    "My-Project",
    "ünder",
    "模型",
    "🤗",
    "1a",
    "123",
    "a\n",
    "a\nb",
    "a\0",
    "a'b",
    'a"b',
    "a;b",
    "a$b",
    "a*",
    "a" * 65,
    "a" * 300,
    "{{ x }}",
    "ａｂｃ",
    "a١",
    "class",
    "import",
    "lambda",
    "os",
    "json",
    "random",
    "logging",
    "test",
    "con",
    "nul",
    "aux",
    "prn",
    "com1",
    "lpt9",
    "torch",
    "transformers",
    "accelerate",
    "datasets",
    "numpy",
    "safetensors",
    "tqdm",
    "matplotlib",
    "tokenizers",
    "huggingface-hub",
    "pytest",
    "ruff",
    "mypy",
    "model",
    "training",
    "train",
    "tests",
    "data",
    "configs",
    "tiny",
    "outputs",
]

BAD_BASE_MODELS = [
    "",
    " ",
    " tiny",
    "tiny ",
    "a/b/c",
    "/",
    "./",
    "~/",
    "org/",
    "/\n",
    "./a\0",
    "./a\u202eb",
    "./lone\udcff",
    "../up",
    "..",
    ".",
    "~user/x",
    "a..b",
    "a--b",
    "org/a--b",
    "org//a",
    "-a",
    "a-",
    "org/-a",
    ".hidden",
    "a.",
    "a.git",
    "org/a.git",
    "a b",
    "a\nb",
    "a:b",
    "a@main",
    "https://huggingface.co/org/name",
    "C:\\models",
    "org\\name",
    "./it's",
    './say "x"',
    "./back\\slash",
    "./outer space ",
    "./{{ x }}",
    "./{% x %}",
    "模型",
    "org/模型",
    "a" * 97,
    "org/" + "a" * 93,
    "/" + "a" * 200,
]

GOOD_SLUGS = ["a", "a1", "my-project", "x-1-y", "torch-2", "my-torch", "tests-2", "a" * 64]

GOOD_BASE_MODELS = [
    "tiny",
    "gpt2",
    "google-t5/t5-small",
    "org_1/Name.v2-x_y",
    "a" * 96,
    "/srv/models/bert",
    "./models/a b",
    "~/models/模型",
    "./--odd..name",
    "~/models [1]/{a}*",
]


# Each answer creates the folder `ran` if it is rendered. Cookiecutter renders key=value arguments.
RUNS_CODE = [
    "<< cycler.__init__.__globals__.os.mkdir('ran') >>",
    "<<% set made = lipsum.__globals__['os'].mkdir('ran') %>>",
    "a\n<<%- for _ in [joiner.__init__.__globals__.os.mkdir('ran')] %>><<% endfor %>>",
    "<< self.__init__.__globals__.__builtins__['__import__']('os').mkdir('ran') >>",
    "<< cycler['__init__']['__globals__'].os.mkdir('ran') >>",
]


def names(values: list[str]) -> list[str]:
    return [ascii(value)[:40] for value in values]


@cache  # most files do not contain the answers
def assert_valid(code: str) -> None:
    ast.parse(code)


def assert_refused(folder: Path, name: str, value: str) -> None:
    """Check that the error is one sentence with the question's name, and that no file is made."""
    with pytest.raises(FailedHookException) as refused:
        check(value, name)
    sentence = str(refused.value)
    assert sentence.startswith(f"{name} ") and sentence.endswith("."), sentence
    assert "expected" in sentence and sentence.isprintable() and len(sentence) < 300, sentence
    with pytest.raises(FailedHookException) as refused:
        bake(folder / "out", {name: value})
    start = "The text " if "<<" in value else f"{name} "  # refused before `check`
    assert str(refused.value).startswith(start)
    assert list(folder.iterdir()) == []


@pytest.mark.parametrize("text", ODD_TEXTS, ids=names(ODD_TEXTS))
def test_unusual_text_is_preserved(text: str, tmp_path: Path) -> None:
    task = TASKS[len(text) % len(TASKS)]
    answers = {"project_name": text, "description": text, "author": text, "task": task}
    project = bake(tmp_path, {"project_slug": SLUG, **answers}, hooks=False)
    settings = tomllib.loads((project / "pyproject.toml").read_text(encoding="utf-8"))
    assert settings["project"]["description"] == text
    assert settings["project"]["authors"] == [{"name": text}]
    for name in files_of(project):
        if name.endswith(".py"):
            assert_valid((project / name).read_text(encoding="utf-8"))


@pytest.mark.parametrize("name", ["project_name", "description", "author"])
@pytest.mark.parametrize("text", BAD_TEXTS, ids=names(BAD_TEXTS))
def test_invalid_text_is_refused(name: str, text: str, tmp_path: Path) -> None:
    assert_refused(tmp_path, name, text)


@pytest.mark.parametrize("slug", BAD_SLUGS, ids=names(BAD_SLUGS))
def test_invalid_slug_is_refused(slug: str, tmp_path: Path) -> None:
    assert_refused(tmp_path, "project_slug", slug)


@pytest.mark.parametrize("base_model", BAD_BASE_MODELS, ids=names(BAD_BASE_MODELS))
def test_invalid_base_model_is_refused(base_model: str, tmp_path: Path) -> None:
    assert_refused(tmp_path, "base_model", base_model)


def test_valid_answers_are_accepted() -> None:
    for slug in GOOD_SLUGS:
        assert check(slug, "project_slug") == slug
    for base_model in GOOD_BASE_MODELS:
        assert check(base_model, "base_model") == base_model
        assert ast.literal_eval(f'"{base_model}"') == base_model  # as quoted in configuration.py
    for task in TASKS:
        assert check(task, "task") == task


@pytest.mark.parametrize("base_model", ["~/models/mini", "./models [1]/a{b}*", "/srv/模型 1"])
def test_folder_as_base_model_is_rendered_unchanged(
    base_model: str, task: str, tmp_path: Path
) -> None:
    """`~` is expanded only in a run, so that each user of a shared project can use the project."""
    project = bake(tmp_path, {"task": task, "base_model": base_model})
    code = (project / "model" / "configuration.py").read_text(encoding="utf-8")
    assigned = {
        target.id: node.value.value
        for node in ast.parse(code).body
        if isinstance(node, ast.Assign) and isinstance(node.value, ast.Constant)
        for target in node.targets
        if isinstance(target, ast.Name)
    }
    assert assigned["BASE_MODEL"] == base_model
    assert f"`{base_model}`" in (project / "README.md").read_text(encoding="utf-8")


def test_value_that_is_not_text_is_refused() -> None:
    wrong: list[object] = [None, 1, True, ["x"], {}]
    for name in PROBLEMS:
        for value in wrong:
            with pytest.raises(FailedHookException, match=f"^{name} .*expected text"):
                check(value, name)


def test_names_of_folders_and_modules_in_the_project_are_refused_as_slugs(render: Render) -> None:
    project = render()
    for path in project.iterdir():
        slug = path.stem.lower()
        if path.is_dir() or path.suffix == ".py":
            assert slug_problem(slug), slug


@pytest.mark.parametrize(
    ("name", "slug"),
    [
        ("My Project", "my-project"),
        ("Žluť 模型", "zlut-mo-xing"),
        ("123 go", "project-123-go"),
        ("Torch", "project-torch"),
        ("class", "project-class"),
        ("🤗", "project"),
        ("a " * 60, "a-" * 31 + "a"),
    ],
)
def test_default_slug_is_derived_from_the_name(name: str, slug: str, tmp_path: Path) -> None:
    assert bake(tmp_path, {"project_name": name.strip()}, hooks=False).name == slug


@settings(deadline=None)
@given(st.text())
def test_every_name_gives_a_valid_slug(name: str) -> None:
    assert slug_problem(usable_slug(slugify(name))) is None


@settings(deadline=None)
@given(st.text(st.characters(exclude_categories=["Cs"])))
def test_quoted_text_is_read_unchanged_by_every_format(text: str) -> None:
    quoted = lit(text)
    assert ast.literal_eval(quoted) == text
    assert json.loads(quoted) == text
    assert yaml.safe_load(quoted) == text
    assert tomllib.loads(f"x = {quoted}")["x"] == text


# The following tests run the command `cookiecutter` and check its output.


def test_no_input_renders_a_project_with_the_default_answers(task: str, shell: Shell) -> None:
    done = shell.run("--no-input", f"task={task}")
    assert done.returncode == 0, done.stderr
    assert done.stdout == ""
    assert f"cd {shell.here / SLUG}" in done.stderr
    assert f'name = "{SLUG}"' in (shell.here / SLUG / "pyproject.toml").read_text("utf-8")


def test_typed_answers_are_rendered(shell: Shell) -> None:
    done = shell.run(typed='2\nTitle "x"\nmy-title\nIt\'s {x} \\ 日本語\nMe\n\n')
    assert done.returncode == 0, done.stdout + done.stderr
    assert "seq2seq: turns a text into another text" in done.stdout
    settings = tomllib.loads((shell.here / "my-title" / "pyproject.toml").read_text("utf-8"))
    assert settings["project"]["description"] == "It's {x} \\ 日本語"
    assert "(seq2seq) is ready" in done.stderr


@pytest.mark.parametrize(
    "answer", ["project_slug=../esc", "base_model=a b", "author=", "author=}}"]
)
def test_invalid_answer_on_the_command_line_is_refused(answer: str, shell: Shell) -> None:
    done = shell.run("--no-input", answer)
    shell.assert_refused(done, answer.split("=")[0])
    assert len(done.stdout.splitlines()) == 1
    assert done.stderr == ""


@pytest.mark.parametrize("code", RUNS_CODE, ids=names(RUNS_CODE))
def test_code_in_an_answer_is_not_executed(code: str, shell: Shell) -> None:
    config = shell.home / "config.yaml"
    config.write_text(json.dumps({"default_context": {"description": code}}), encoding="utf-8")
    for arguments in (
        ["--no-input", f"description={code}"],
        ["--no-input", "--config-file", str(config)],
        ["--config-file", str(config)],
    ):
        done = shell.run(*arguments, typed="\n" * 6)
        assert done.returncode == 1
        assert "The text " in done.stdout and " holds a template mark; " in done.stdout
        assert "Traceback" not in done.stdout + done.stderr
        assert list(shell.here.iterdir()) == []


@pytest.mark.parametrize(
    ("setting", "mark", "code"),
    [
        ("variable_start_string", "[[", "[[ cycler.__init__.__globals__.os.mkdir('ran') >>"),
        (
            "line_statement_prefix",
            "##",
            "a\n## set x = cycler.__init__.__globals__.os.mkdir('ran')",
        ),
    ],
)
def test_code_in_answers_that_set_other_delimiters_is_not_executed(
    setting: str, mark: str, code: str, shell: Shell
) -> None:
    config = shell.home / "config.yaml"
    answers = {"_jinja2_env_vars": {setting: mark}, "project_name": code}
    config.write_text(json.dumps({"default_context": answers}), encoding="utf-8")
    done = shell.run("--no-input", "--config-file", str(config))
    assert done.returncode == 1
    assert done.stdout.startswith("The text "), done.stdout
    assert list(shell.here.iterdir()) == []


def test_code_in_a_replay_without_hooks_is_not_executed(shell: Shell) -> None:
    assert shell.run("--no-input", "-o", "first").returncode == 0
    replay = shell.home / ".cookiecutter_replay" / f"{ROOT.name}.json"
    answers = json.loads(replay.read_text(encoding="utf-8"))
    ran = shell.home / "ran"
    code = f"<< cycler.__init__.__globals__.os.mkdir('{ran}') >>"
    answers["cookiecutter"]["project_slug"] = code  # rendered as a path
    replay.write_text(json.dumps(answers), encoding="utf-8")
    done = shell.run("--replay", "--accept-hooks", "no", "-o", "again")
    assert done.returncode == 1
    assert done.stdout.startswith("The text "), done.stdout
    assert not ran.exists()


@pytest.mark.parametrize(
    ("typed", "start"),
    [
        ("\na << b\n", "project_name 'a << b' holds the template mark <<"),
        ("\n\n\n<< 7*7 >>\n", "description '<< 7*7 >>' holds the template mark <<"),
        ("\n\n../esc\n", "project_slug '../esc' is not a project name"),
        ("\n\n\n\n\ntorch torch\n", "base_model 'torch torch' is not a base model"),
    ],
)
def test_invalid_answer_ends_the_questions(typed: str, start: str, shell: Shell) -> None:
    done = shell.run(typed=typed)
    assert done.returncode != 0
    # The input is not echoed, so the last question and the error are on one line.
    assert f": {start}" in done.stdout.splitlines()[-1], done.stdout
    assert "Traceback" not in done.stdout + done.stderr
    assert list(shell.here.iterdir()) == []


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("project_slug", "../esc"),
        ("project_slug", "torch"),
        ("project_name", "two\nlines"),
        ("description", "<< 7*7 >>"),
        ("author", 'x\n"""\nraise SystemExit'),
        ("task", "vision"),
        ("base_model", '"'),
    ],
)
def test_replayed_answers_are_checked_again(name: str, value: str, shell: Shell) -> None:
    assert shell.run("--no-input").returncode == 0
    replay = shell.home / ".cookiecutter_replay" / f"{ROOT.name}.json"
    answers = json.loads(replay.read_text(encoding="utf-8"))
    answers["cookiecutter"][name] = value
    replay.write_text(json.dumps(answers), encoding="utf-8")

    before = files_of(shell.here.parent)
    done = shell.run("--replay", "-o", "again")
    assert done.returncode != 0
    assert done.stdout.splitlines()[-1].startswith(f"{name} "), done.stdout
    assert files_of(shell.here.parent) == before
    assert not any((shell.here / "again").iterdir())


def test_project_is_rendered_with_an_ascii_console_or_without_stderr(shell: Shell) -> None:
    done = shell.run("--no-input", "-o", "模型", PYTHONIOENCODING="ascii:strict", LC_ALL="C")
    assert done.returncode == 0, done.stderr
    assert "is ready" in done.stderr
    command = [sys.executable, "-m", "cookiecutter", str(ROOT), "--no-input", "--default-config"]
    script = 'exec "$@" 2>&-'
    closed = subprocess.run(
        ["sh", "-c", script, "sh", *command],
        cwd=shell.here,
        env={**os.environ, "HOME": str(shell.home)},
    )
    assert closed.returncode == 0
    assert (shell.here / SLUG / "pyproject.toml").is_file()
