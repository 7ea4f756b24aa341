"""Jinja filters of this template, which check and quote answers and compute default answers.

Cookiecutter imports this module as a local extension, before the first question and also with
--accept-hooks no. Cookiecutter appends the template's folder to sys.path, so any other module of
the same name is found first. Therefore this module has the name of the template, and is not part of
a package with a common name such as `hooks`.
"""

from __future__ import annotations

import inspect
import json
import keyword
import re
import sys
import unicodedata
from importlib import metadata
from pathlib import Path

from cookiecutter.exceptions import FailedHookException
from cookiecutter.find import find_template
from jinja2 import Environment
from jinja2.ext import Extension

# Cookiecutter shows the text of an ImportError as one line, before the first question.
if "env" not in inspect.signature(find_template).parameters:
    # The error does not use cookiecutter.__version__, which is wrong in 2.7.0.
    raise ImportError(
        "hf-template needs cookiecutter 2.6.0 or newer; the installed version is "
        f"{metadata.version('cookiecutter')}: pip install --upgrade cookiecutter"
    )
if sys.version_info < (3, 10):  # noqa: UP036 - cookiecutter 2.6 also runs on older versions
    raise ImportError(
        "hf-template needs Python 3.10 or newer; cookiecutter is installed in Python "
        f"{sys.version.split()[0]}: install cookiecutter in a newer Python"
    )

MAX_TEXT = 200
MAX_SLUG = 64
MAX_HUB_ID = 96

SLUG = re.compile(r"[a-z][a-z0-9]*(-[a-z0-9]+)*")
HUB_NAME = r"[A-Za-z0-9_]([A-Za-z0-9._-]*[A-Za-z0-9_])?"
HUB_ID = re.compile(rf"({HUB_NAME}/)?{HUB_NAME}")
# Marks of this template, and of the copy that scripts/make_copy.py writes.
TEMPLATE_MARKS = ("<<", ">>", "{{", "}}", "{%", "%}", "{#", "#}")

# Strings of the template that Cookiecutter renders without a file name. Any other such string with
# marks is an answer of the user, or the path of a folder that the user has chosen.
ROOT = Path(__file__).resolve().parent
QUESTIONS = (ROOT / "cookiecutter.json").read_text(encoding="utf-8")
HOOKS = [path.read_text(encoding="utf-8") for path in ROOT.glob("hooks/*_gen_project.py")]
OWN_TEXTS = {*HOOKS, *(path.name for path in ROOT.glob("*cookiecutter.project_slug*"))}

# Characters that Python, TOML, YAML or JSON misreads, or that change the appearance of a line:
# DEL and C1, marks of text direction, line and paragraph separators, byte order marks, and U+FFFF.
UNSAFE = re.compile(r"[\x7f-\x9f\u061c\u200e\u200f\u2028-\u202e\u2066-\u2069\ufeff\ufffe\uffff]")

PACKAGES = """
    accelerate aim bitsandbytes clearml comet_ml datasets deepspeed dvclive evaluate filelock fsspec
    huggingface_hub hypothesis jinja2 matplotlib mlflow mypy numpy onnx onnxruntime onnxscript
    optuna packaging pandas peft pip protobuf psutil pyarrow pytest regex requests ruff sacrebleu
    safetensors schedulefree scipy sentencepiece setuptools swanlab sympy tensorboard tokenizers
    torch torchaudio torchmetrics torchvision tqdm trackio transformers triton typing_extensions
    wandb wheel yaml
"""
PLACES = """
    best build checkpoints configuration dataset dist export last modeling models outputs src
    templates test
"""
FILES = {path.stem.lower() for path in ROOT.glob("*cookiecutter.project_slug*/*")}
DEVICES = """
    aux con nul prn com0 com1 com2 com3 com4 com5 com6 com7 com8 com9
    lpt0 lpt1 lpt2 lpt3 lpt4 lpt5 lpt6 lpt7 lpt8 lpt9
"""

# A project with one of these names would break imports, pip or the file system.
TAKEN = {
    "a Python keyword": set(keyword.kwlist),
    "a module of the standard library": set(sys.stdlib_module_names),
    "a package that the project uses": set(PACKAGES.split()),
    "a file or folder of the project": {*FILES, *PLACES.split()},
    "a device on Windows": set(DEVICES.split()),
}


def text_problem(value: str) -> str | None:
    """Return the error in a line of free text, or None."""
    expected = f"expected one line of 1 to {MAX_TEXT} printable characters"
    if not value.strip():
        return f"is empty; {expected}"
    if len(value) > MAX_TEXT:
        return f"has {len(value)} characters; {expected}"
    for mark in TEMPLATE_MARKS:
        if mark in value:
            return f"holds the template mark {mark}; {expected} without such marks"
    for char in value:
        if UNSAFE.match(char) or unicodedata.category(char) in ("Cc", "Cs"):
            return f"holds the character U+{ord(char):04X}; {expected}"
    return None


def slug_problem(value: str) -> str | None:
    """Return the error in the name of the project's folder and package, or None."""
    if not SLUG.fullmatch(value) or len(value) > MAX_SLUG:
        return (
            "is not a project name; expected words of a-z and 0-9 joined by single hyphens, the"
            f" first starting with a letter, at most {MAX_SLUG} characters, such as my-project"
        )
    for what, names in TAKEN.items():
        if value.replace("-", "_") in names:
            return f"is also {what}; expected another name, such as my-{value}"
    return None


def base_model_problem(value: str) -> str | None:
    """Return the error in the name or path of a base model, or None.

    A valid name or path needs no escaping between double quotes.
    """
    if re.match(r"(/|\./|~/).", value):
        if value != value.strip() or re.search(r"[\"'\\]", value):
            return (
                "is not a usable path; expected one without quotes, backslashes, leading or "
                "trailing spaces"
            )
        return text_problem(value)
    odd = "--" in value or ".." in value or value.endswith(".git")
    if len(value) > MAX_HUB_ID or odd or not HUB_ID.fullmatch(value):
        return (
            f"is not a base model; expected tiny, a Hub id (name or org/name, at most {MAX_HUB_ID}"
            " characters) or a local folder that starts with /, ./ or ~/"
        )
    return None


def task_problem(value: str) -> str | None:
    """Return the error in a task, or None. Only a replay file can have an invalid task."""
    tasks = json.loads(QUESTIONS)["task"]
    return None if value in tasks else f"is not a task; expected one of {', '.join(tasks)}"


PROBLEMS = {
    "project_name": text_problem,
    "project_slug": slug_problem,
    "description": text_problem,
    "author": text_problem,
    "task": task_problem,
    "base_model": base_model_problem,
}


def shown(value: object) -> str:
    """Return the value as one short line that the console can encode."""
    text = repr(value)
    if len(text) > 80:
        text = f"{text[:76]}...{text[-1]}"
    encoding = getattr(sys.stdout, "encoding", None) or "ascii"
    return text.encode(encoding, "backslashreplace").decode(encoding)


def check(value: object, name: str) -> object:
    """Return the answer to question `name`, or stop cookiecutter with one sentence."""
    problem = PROBLEMS[name](value) if isinstance(value, str) else "is not text; expected text"
    if problem:
        raise FailedHookException(f"{name} {shown(value)} {problem}.")
    return value


def lit(value: str) -> str:
    """Quote a value so that Python, TOML, YAML and JSON all read it back unchanged."""
    text = json.dumps(value, ensure_ascii=False)
    return UNSAFE.sub(lambda match: f"\\u{ord(match[0]):04x}", text)


def description_of(task: str) -> str:
    """Return the beginning of a project's default description, from task.json of the task."""
    about = ROOT / "templates" / str(check(task, "task")) / "task.json"
    return json.loads(about.read_text(encoding="utf-8"))["description"]


def usable_slug(slug: str) -> str:
    """Return a slug that `check` accepts: `slug`, or `project-` plus `slug`, cut to MAX_SLUG."""
    slug = slug[:MAX_SLUG].rstrip("-")
    return f"project-{slug}"[:MAX_SLUG].rstrip("-") if slug_problem(slug) else slug


class HFExtension(Extension):
    """Adds the filters to Cookiecutter's environment, and refuses answers that are templates."""

    def __init__(self, environment: Environment) -> None:
        super().__init__(environment)
        filters = (check, description_of, lit, usable_slug)
        environment.filters.update({function.__name__: function for function in filters})
        # cruft update renders two versions of the template in one process. Let each render import
        # its own version of this module.
        sys.modules.pop(__name__, None)

    def preprocess(self, source: str, name: str | None, filename: str | None = None) -> str:
        """Refuse answers that are templates.

        Cookiecutter would run templates in `key=value` arguments and in user settings as code.
        """
        is_own = source in OWN_TEXTS or json.dumps(source, ensure_ascii=False) in QUESTIONS
        foreign = name is None and not is_own
        # Use the lexer instead of a search for <<, since a user's settings can change the marks.
        if foreign and any(kind != "data" for _, kind, _ in self.environment.lex(source)):
            text = f"The text {shown(source)} holds a template mark"
            raise FailedHookException(f"{text}; expected an answer or a path without <<.")
        return source
