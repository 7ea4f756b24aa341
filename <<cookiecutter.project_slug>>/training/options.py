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

    Importing these modules would import torch and transformers, which takes seconds. Therefore, if
    a module has not been imported yet, only the statements on which these constants depend are
    executed.

    Attributes:
        base_model: `BASE_MODEL` of configuration.py, the default of `--model_id`.
        data_options, model_options, score_options, predict_options: `OPTIONS` of dataset.py,
            configuration.py, metrics.py and prediction.py: command line arguments, by name.
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
        except Exception:  # import the full module instead, which also raises the user's errors
            pass
    return getattr(importlib.import_module(module), name, default)


def evaluate(file: Path, name: str, default: Any) -> Any:
    """Return a constant of a module of `model/`, without importing the module.

    Return `default` if the module does not define the constant.

    Execute the statements that contain the name, and the statements on which they depend. Define a
    function or class only if one of these statements uses it.
    """
    tree = ast.parse(file.read_text(encoding="utf-8"))
    needed = {name, "*"}
    chosen: set[ast.stmt] = set()
    while found := {node for node in tree.body if needed & _names_in(node)} - chosen:
        chosen |= found
        needed = needed.union(*(_uses(node) for node in found))
    statements = [node for node in tree.body if node in chosen]
    values = {"__name__": f"model.{file.stem}", "__package__": "model"}
    exec(compile(ast.Module(statements, []), str(file), "exec"), values)
    return values.get(name, default)


def _names_in(statement: ast.stmt) -> set[str]:
    """Return the name of a function or class, or all names in a statement of another type."""
    return {statement.name} if isinstance(statement, DEFINITIONS) else set(_uses(statement))


def _uses(statement: ast.stmt) -> Iterator[str]:
    """Yield the names of variables and imports in a statement."""
    for node in ast.walk(statement):
        if isinstance(node, ast.Name):
            yield node.id
        elif isinstance(node, ast.alias):
            yield node.asname or node.name.partition(".")[0]
