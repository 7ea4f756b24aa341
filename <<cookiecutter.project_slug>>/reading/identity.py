"""Cache keys: hashes of values, of source code and of tokenizers."""

import ast
import copy
import hashlib
import importlib.util
import inspect
import json
import sys
import tempfile
import uuid
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from functools import cache
from pathlib import Path
from typing import Any

import tokenizers
import transformers
from datasets.fingerprint import Hasher
from transformers import PreTrainedTokenizerBase

ROOT = Path(__file__).resolve().parent.parent
# Attributes of tokenizers that do not affect the tokens, such as the path of the tokenizer.
IRRELEVANT = ("name_or_path", "is_local", "local_files_only", "files_loaded", "verbose")


def hash_values(*values: Any) -> str:
    """Hash the `repr` of values, such as strings, numbers, and lists and dicts of these."""
    return hashlib.sha256(repr(values).encode("utf-8", "surrogatepass")).hexdigest()[:32]


def hash_source(file: str, package: str) -> str:
    """Hash the source of a file and of all project files that it imports, directly or indirectly.

    For a function in a module, `datasets` would hash only the name, and miss changes to the code.

    Args:
        package: The package of the file, from which its relative imports start.
    """
    pending = [(Path(file).resolve(), package)]
    sources: dict[str, str] = {}
    while pending:
        path, package = pending.pop()
        if str(path) in sources:
            continue
        sources[str(path)] = path.read_text(encoding="utf-8")
        for name in _imported_names(sources[str(path)], package):
            pending += _project_files(name)
    return hash_values(sorted((Path(path).name, source) for path, source in sources.items()))


@cache  # called with the same sources for each data file
def _imported_names(source: str, package: str) -> list[str]:
    names: list[str] = []
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Import):
            names += [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom):
            with suppress(ImportError):  # a relative import with too many dots
                base = importlib.util.resolve_name("." * node.level + (node.module or ""), package)
                names += [base, *(f"{base}.{alias.name}" for alias in node.names)]
    return names


@cache
def _project_files(name: str) -> list[tuple[Path, str]]:
    """Return the files that an import of this name executes, each with its package."""
    files: list[tuple[Path, str]] = []
    folder = ROOT
    package = ""
    for part in name.split("."):
        if (module := folder / f"{part}.py").is_file():
            files.append((module, package))
        folder /= part
        package = f"{package}.{part}".strip(".")
        if (module := folder / "__init__.py").is_file():
            files.append((module, package))
    return files


def hash_function(function: Callable, tokenizer: PreTrainedTokenizerBase) -> str:
    """Hash everything on which the result of a function depends, except its arguments.

    This includes the source code of the function's module and of the project files that the module
    imports, the values that the function closes over, its default arguments, and the tokenizer.
    """
    module = sys.modules[function.__module__]
    if file := getattr(module, "__file__", None):
        code = hash_source(file, module.__package__ or "")
    else:  # a function defined in a notebook
        code = _hash_object(function)
    if inspect.isfunction(function):
        values = {**inspect.getclosurevars(function).nonlocals, "": function.__defaults__}
    else:
        values = {"": function}
    hashes = {n: _hash_object(value) for n, value in values.items() if value is not tokenizer}
    return hash_values(code, function.__qualname__, hashes, hash_tokenizer(tokenizer))


def _hash_object(value: Any) -> str:
    try:
        return Hasher.hash(value)
    except Exception:  # not picklable: use a new hash, so that the cache has no entry for it
        return uuid.uuid4().hex


def hash_tokenizer(tokenizer: PreTrainedTokenizerBase) -> str:
    """Hash the files that a tokenizer saves, and the attributes that may affect its tokens.

    Attributes are hashed because a tokenizer does not save all of them.
    """
    settings = {
        name: value
        for name, value in vars(tokenizer).items()
        if isinstance(value, (str, int, float)) and name not in IRRELEVANT
    }
    _forget_last_call(tokenizer)
    with tempfile.TemporaryDirectory() as folder:
        tokenizer.save_pretrained(folder)
        files = sorted(path for path in Path(folder).rglob("*") if path.is_file())
        contents = [(path.name, _content(path)) for path in files]
    versions = (tokenizers.__version__, transformers.__version__)
    kind = type(tokenizer).__qualname__
    return hash_values(versions, kind, sorted(settings.items()), contents)


def _content(path: Path) -> bytes | list:
    if path.name != "tokenizer_config.json":
        return path.read_bytes()
    config = json.loads(path.read_bytes())
    return [(name, value) for name, value in sorted(config.items()) if name not in IRRELEVANT]


def _forget_last_call(tokenizer: PreTrainedTokenizerBase) -> None:
    """Reset truncation and padding, which a fast tokenizer keeps from its last call."""
    if tokenizer.is_fast:
        tokenizer.backend_tokenizer.no_truncation()
        tokenizer.backend_tokenizer.no_padding()


@contextmanager
def unchanged(tokenizer: PreTrainedTokenizerBase) -> Iterator[None]:
    """Restore the state of a tokenizer on exit.

    Otherwise the files that the tokenizer saves would depend on whether the tokens of the data came
    from the cache.
    """
    before = dict(vars(tokenizer))
    if tokenizer.is_fast:
        before["_tokenizer"] = copy.deepcopy(tokenizer.backend_tokenizer)
    try:
        yield
    finally:
        vars(tokenizer).clear()
        vars(tokenizer).update(before)
