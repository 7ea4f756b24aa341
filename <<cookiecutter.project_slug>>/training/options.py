"""The arguments that `model/` adds to the command lines, found without importing torch."""

import ast
import importlib
import importlib.util
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

TINY = "tiny"
DEFINITIONS = (ast.FunctionDef, ast.ClassDef)


class TaskOptions:
    """`BASE_MODEL` and `OPTIONS` of the modules of `model/`.

    A module that is not imported yet is not imported for them if its source assigns the value in a
    single statement: importing it would import torch and transformers, which takes seconds.

    Attributes:
        base_model: `BASE_MODEL` of configuration.py: default of `--model_id`.
        data_options, model_options, score_options, predict_options: `OPTIONS` of the modules:
            command line arguments, by name.
    """

    def __init__(self) -> None:
        self.base_model: str = _read_constant("model.configuration", "BASE_MODEL", TINY)
        self.model_options: dict[str, dict] = _read_constant("model.configuration", "OPTIONS", {})
        self.data_options: dict[str, dict] = _read_constant("model.dataset", "OPTIONS", {})
        self.score_options: dict[str, dict] = _read_constant("model.metrics", "OPTIONS", {})
        self.predict_options: dict[str, dict] = _read_constant("model.prediction", "OPTIONS", {})


def _read_constant(module: str, name: str, default: Any) -> Any:
    """Return a constant of a module; `default` if the module or the constant does not exist."""
    spec = importlib.util.find_spec(module)
    if spec is None:
        return default
    if module not in sys.modules and spec.origin is not None:
        try:
            return evaluate(Path(spec.origin), name, default)
        except Exception:  # its value depends on other statements of the module
            pass
    return getattr(importlib.import_module(module), name, default)


def evaluate(file: Path, name: str, default: Any) -> Any:
    """Evaluate a constant from the only statement that contains its name.

    Functions and classes may contain it, too.

    Raises:
        Exception: Another statement contains the name, or the value refers to other names.
    """
    tree = ast.parse(file.read_text(encoding="utf-8"))
    found = [node for node in tree.body if not isinstance(node, DEFINITIONS)]
    found = [node for node in found if {name, "*"} & set(_names_in(node))]
    if not found:
        return default
    (statement,) = found
    targets: list[ast.expr] = []
    if isinstance(statement, ast.AnnAssign):
        targets = [statement.target]
    elif isinstance(statement, ast.Assign):
        targets = statement.targets
    value = getattr(statement, "value", None)
    if value is None or [getattr(target, "id", None) for target in targets] != [name]:
        raise ValueError(f"{name} is not assigned alone")
    return eval(compile(ast.Expression(value), str(file), "eval"), {})


def _names_in(statement: ast.stmt) -> Iterator[str]:
    """Yield the names of variables and imports in a statement."""
    for node in ast.walk(statement):
        if isinstance(node, ast.Name):
            yield node.id
        elif isinstance(node, ast.alias):
            yield node.asname or node.name
