"""Functions of projects are short, flat and typed; modules import no module of a higher layer."""

from __future__ import annotations

import ast
from collections.abc import Callable, Iterator
from graphlib import CycleError, TopologicalSorter
from itertools import chain
from pathlib import Path
from typing import TypeAlias

import pytest

from conftest import Render, files_of

MAX_LINES_OF_TRAIN = 220  # without comments and docstrings
MAX_LINES_OF_FUNCTION = 60
MAX_PARAMETERS = 6
MAX_NESTING = 3

# From the lowest layer to the highest. All other top-level modules are scripts, above all layers.
LAYERS = ["errors", "reading", "model", "training", "reporting"]

COMPOUND = (ast.If, ast.For, ast.AsyncFor, ast.While, ast.With, ast.AsyncWith, ast.Try, ast.Match)
DOCUMENTED = (ast.Module, ast.ClassDef, ast.FunctionDef, ast.AsyncFunctionDef)
Function: TypeAlias = ast.FunctionDef | ast.AsyncFunctionDef
Faults: TypeAlias = Iterator[tuple[int, str]]
Graph: TypeAlias = dict[str, set[str]]


def code_of(project: Path) -> dict[str, str]:
    """Return the project's Python files without its tests."""
    names = (name for name in files_of(project) if name.endswith(".py"))
    return {
        name: (project / name).read_text(encoding="utf-8")
        for name in names
        if not name.startswith("tests/")
    }


# Each rule below yields the line and a description of each violation.


def functions_of(code: str) -> Iterator[Function]:
    for node in ast.walk(ast.parse(code)):
        if isinstance(node, (ast.FunctionDef, ast.AsyncFunctionDef)):
            yield node


def parameters_of(function: Function) -> list[ast.arg]:
    """Return the named parameters, without self, cls, *args and **kwargs."""
    given = function.args
    named = [*given.posonlyargs, *given.args, *given.kwonlyargs]
    return [parameter for parameter in named if parameter.arg not in ("self", "cls")]


def nesting(statements: list[ast.stmt]) -> int:
    """Return the depth of nested compound statements. An elif has the same depth as its if."""
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


def long_functions(code: str) -> Faults:
    for function in functions_of(code):
        lines = (function.end_lineno or 0) - function.lineno + 1
        if lines > MAX_LINES_OF_FUNCTION:
            yield function.lineno, f"{function.name} has {lines} lines"


def many_parameters(code: str) -> Faults:
    for function in functions_of(code):
        count = len(parameters_of(function))
        if count > MAX_PARAMETERS:
            yield function.lineno, f"{function.name} has {count} parameters"


def deep_functions(code: str) -> Faults:
    for function in functions_of(code):
        depth = nesting(function.body)
        if depth > MAX_NESTING:
            yield function.lineno, f"{function.name} is {depth} statements deep"


def untyped_parameters(code: str) -> Faults:
    for function in functions_of(code):
        for parameter in parameters_of(function):
            if parameter.annotation is None:
                yield parameter.lineno, f"{function.name}: {parameter.arg} has no type"


def is_stub(statement: ast.stmt) -> bool:
    """Return whether a statement is `...`, as the body of a method of a Protocol."""
    value = statement.value if isinstance(statement, ast.Expr) else None
    return isinstance(value, ast.Constant) and value.value is Ellipsis


def shared_lines(code: str) -> Faults:
    seen: set[int] = set()
    for node in ast.walk(ast.parse(code)):
        if isinstance(node, ast.stmt) and not is_stub(node):
            if node.lineno in seen:
                yield node.lineno, "two statements on one line"
            seen.add(node.lineno)


def packed_assignments(code: str) -> Faults:
    """Yield statements that assign several values to several targets. A swap is allowed."""
    for node in ast.walk(ast.parse(code)):
        if not isinstance(node, ast.Assign) or not isinstance(node.value, (ast.Tuple, ast.List)):
            continue
        values = sorted(map(ast.unparse, node.value.elts))
        packed = [item for item in node.targets if isinstance(item, (ast.Tuple, ast.List))]
        if any(sorted(map(ast.unparse, target.elts)) != values for target in packed):
            yield node.lineno, f"several assignments in one statement: {ast.unparse(node)}"


RULES: list[Callable[[str], Faults]] = [
    long_functions,
    many_parameters,
    deep_functions,
    untyped_parameters,
    shared_lines,
    packed_assignments,
]


@pytest.mark.parametrize("rule", RULES, ids=lambda rule: rule.__name__)
def test_code_follows_the_rule(rule: Callable[[str], Faults], task: str, render: Render) -> None:
    found = [
        f"{name}:{line}: {fault}"
        for name, code in code_of(render(task=task)).items()
        for line, fault in rule(code)
    ]
    assert not found, "\n".join(found)


def lines_of_code(code: str) -> int:
    """Return the number of lines that are not part of a comment or a docstring."""
    docstrings: set[int] = set()
    for node in ast.walk(ast.parse(code)):
        if isinstance(node, DOCUMENTED) and ast.get_docstring(node) is not None:
            text = node.body[0]
            docstrings.update(range(text.lineno, (text.end_lineno or 0) + 1))
    lines = enumerate(code.splitlines(), 1)
    return sum(not line.lstrip().startswith("#") and n not in docstrings for n, line in lines)


def test_train_py_is_short(render: Render) -> None:
    assert lines_of_code((render() / "train.py").read_text(encoding="utf-8")) <= MAX_LINES_OF_TRAIN


# The tests below check the imports of each module.


def module_of(name: str) -> str:
    """Return the name of a module, such as training.state for training/state.py."""
    return name.removesuffix(".py").removesuffix("/__init__").replace("/", ".")


def imported(node: ast.AST, importer: str, is_package: bool) -> list[tuple[str, str]]:
    """Return the (module, name) pairs that a statement imports; name is "" for `import x`."""
    if isinstance(node, ast.Import):
        return [(alias.name, "") for alias in node.names]
    if not isinstance(node, ast.ImportFrom):
        return []
    base = node.module or ""
    if node.level:
        parts = importer.split(".")
        above = parts[: len(parts) - node.level + is_package]
        base = ".".join([*above, *filter(None, [node.module])])
    return [(base, alias.name) for alias in node.names]


def import_graph(code: dict[str, str]) -> Graph:
    """Return for each module the project's modules that it imports, also inside functions."""
    modules = {module_of(name) for name in code}
    graph: Graph = {module: set() for module in modules}
    for name, text in code.items():
        importer = module_of(name)
        is_package = name.endswith("__init__.py")
        nodes = ast.walk(ast.parse(text))
        for base, item in chain.from_iterable(imported(n, importer, is_package) for n in nodes):
            candidates = (f"{base}.{item}", base, base.partition(".")[0])
            found = next((module for module in candidates if module in modules), None)
            if found and found != importer:
                graph[importer].add(found)
    return graph


def layer_of(module: str, packages: set[str]) -> int:
    top = module.partition(".")[0]
    if top in LAYERS:
        return LAYERS.index(top)
    assert top not in packages, f"{top}/ has no layer; expected one of {LAYERS}"
    return len(LAYERS)


def upward_imports(code: dict[str, str]) -> list[str]:
    packages = {name.partition("/")[0] for name in code if "/" in name}
    return sorted(
        f"{module} imports {other}"
        for module, others in import_graph(code).items()
        for other in others
        if layer_of(other, packages) > layer_of(module, packages)
    )


def cycle_in(graph: Graph) -> list[str]:
    try:
        TopologicalSorter(graph).prepare()
    except CycleError as error:
        return error.args[1]
    return []


def packages_of(graph: Graph) -> Graph:
    """Return the import graph of the packages."""
    packages: Graph = {}
    for module, others in graph.items():
        top = module.partition(".")[0]
        tops = {other.partition(".")[0] for other in others}
        packages.setdefault(top, set()).update(tops - {top})
    return packages


def test_no_import_goes_upward(task: str, render: Render) -> None:
    found = upward_imports(code_of(render(task=task)))
    assert not found, "\n".join(found)


def test_imports_have_no_cycle(task: str, render: Render) -> None:
    graph = import_graph(code_of(render(task=task)))
    assert cycle_in(packages_of(graph)) == []
    assert cycle_in(graph) == []


def test_model_imports_only_reading_and_errors_of_the_project(task: str, render: Render) -> None:
    graph = import_graph(code_of(render(task=task)))
    others = packages_of(graph)["model"]
    assert others <= {"errors", "reading"}


def test_code_in_a_checkpoint_imports_only_modules_of_model(task: str, render: Render) -> None:
    """transformers copies modeling.py, and the modules that it imports, into checkpoints."""
    graph = import_graph(code_of(render(task=task)))
    copied: set[str] = set()
    waiting = ["model.modeling"]
    while waiting:
        module = waiting.pop()
        copied.add(module)
        waiting += graph[module] - copied
    assert {module for module in copied if not module.startswith("model.")} == set()


# The tests below test the functions above.


def count(rule: Callable[[str], Faults], code: str) -> int:
    return len(list(rule(code)))


def test_nesting_is_counted() -> None:
    flat = "if a:\n    pass\nelif b:\n    pass\nelse:\n    for c in d:\n        pass\n"
    deep = "try:\n    a\nexcept OSError:\n    with a:\n        match b:\n            case 1: c\n"
    assert nesting(ast.parse(flat).body) == 2
    assert nesting(ast.parse(deep).body) == 3


def test_statements_are_counted() -> None:
    assert count(shared_lines, "a = 1; b = 2\n") == 1
    assert count(shared_lines, "if a: b\n") == 1
    assert count(shared_lines, "class A:\n    def f(self) -> int: ...\n\n    x = 1\n") == 0
    assert count(packed_assignments, "a, b = 1, 2\n") == 1
    assert count(packed_assignments, "(a, self.b) = [x, y]\n") == 1
    assert count(packed_assignments, "a, b = b, a\na[i], a[j] = a[j], a[i]\n") == 0
    assert count(packed_assignments, "a, b = pair\na, *b = f()\nc = 1, 2\n") == 0


def test_parameters_are_counted() -> None:
    method = "class A:\n    def f(self, a: int, /, b: int, c, *d, e: int, f, g: int, **h): pass\n"
    assert count(many_parameters, method) == 0
    assert count(many_parameters, method.replace("self", "x: int")) == 1
    assert [fault for _, fault in untyped_parameters(method)] == [
        "f: c has no type",
        "f: f has no type",
    ]


def test_lines_are_counted() -> None:
    assert count(long_functions, "def f():\n" + "    pass\n" * 59) == 0
    assert count(long_functions, "def f():\n" + "    pass\n" * 60) == 1
    assert count(deep_functions, "def f():\n    if a:\n        if b:\n            c\n") == 0
    assert lines_of_code('"""A\n\nB\n"""\n# c\n\nx = 1  # d\n\n\ndef f():\n    "e"\n') == 5


def test_imports_are_found() -> None:
    code = {
        "errors.py": "",
        "model/__init__.py": "",
        "model/a.py": "import numpy\nfrom . import b\nfrom .b import c as d\n",
        "model/b.py": "def f():\n    import training.x as y\n",
        "model/c.py": "from model.a import e\nfrom . import __init__\n",
        "training/__init__.py": "from .x import z\nfrom errors import E\n",
        "training/x.py": "if TYPE_CHECKING:\n    from training import z\n",
        "train.py": "import model.a, errors.e\nfrom training.none import f\n",
    }
    graph = import_graph(code)
    assert graph == {
        "errors": set(),
        "model": set(),
        "model.a": {"model.b"},
        "model.b": {"training.x"},
        "model.c": {"model.a", "model"},
        "training": {"training.x", "errors"},
        "training.x": {"training"},
        "train": {"model.a", "errors", "training"},
    }
    assert upward_imports(code) == ["model.b imports training.x"]
    assert sorted(set(cycle_in(graph))) == ["training", "training.x"]
    assert cycle_in(packages_of(graph)) == []
    assert cycle_in(packages_of({"a.b": {"c.d"}, "c.e": {"a.f"}})) != []
    with pytest.raises(AssertionError, match="other/ has no layer"):
        upward_imports({"other/a.py": "import train", "train.py": ""})
