"""Draw docs/design.svg: the packages of a rendered project, their imports, and the data flow.

    python scripts/draw_design.py

Packages, modules and imports are read from the code of a rendered project. The functions in the
data flow are listed in this script, which checks that they exist in the code.
"""

import ast
import tempfile
import textwrap
from collections.abc import Iterator
from html import escape
from itertools import pairwise
from pathlib import Path

from cookiecutter.main import cookiecutter

ROOT = Path(__file__).resolve().parent.parent
PICTURE = ROOT / "docs" / "design.svg"

SCRIPTS = "scripts"  # train.py and the other top-level scripts
# The packages from the top down, with their purposes.
PACKAGES = {
    SCRIPTS: "the loop and the commands",
    "reporting": "progress, pictures, model card, dry run",
    "training": "steps, checkpoints, resume",
    "model": "yours",
    "reading": "from a file to tokens",
    "errors": "errors that end a program with one sentence",
}
# The data flow: functions, their files, and their results.
FLOW = [
    ("read_table", "reading/tables.py", "columns of text"),
    ("generate_dataset", "model/dataset.py", "tokens, cached on disk"),
    ("Batches.steps", "training/batches.py", "steps of micro-batches"),
    ("train_step", "train.py", "gradient of a global batch"),
    ("Model.forward", "model/modeling.py", "loss of a micro-batch"),
    ("optimizer_step", "training/optimization.py", "new weights"),
    ("validate", "train.py", "loss and scores"),
    ("Checkpointer.save", "training/checkpoint.py", "best/, last/, log.json"),
    ("Report.after_validation", "reporting/report.py", "trackers and pictures"),
]
IN_A_ROW = 3

WIDTH = 800
MARGIN = 20
PACKAGE_WIDTH = 560
LINE = 18  # height of a line of text
LANE = 32  # distance between the import lines of two packages
GAP = 16  # distance between two packages
COLUMNS = 76  # characters per line in a package
STEP_WIDTH = 224
STEP_HEIGHT = 66
STEP_GAP = 44
COLORS = ["#555", "#a3541f", "#1f6aa3", "#2c7a3f", "#7a2c78"]


def render(folder: Path) -> Path:
    private = {"replay_dir": str(folder / "replay"), "cookiecutters_dir": str(folder / "cached")}
    return Path(
        cookiecutter(str(ROOT), no_input=True, output_dir=str(folder), default_config=private)
    )


def modules_of(project: Path) -> dict[str, list[Path]]:
    """Return the files of each package, without tests and __init__.py files."""
    packages: dict[str, list[Path]] = {name: [] for name in PACKAGES}
    for file in sorted(project.rglob("*.py")):
        top = file.relative_to(project).parts[0]
        if top == "tests" or file.name == "__init__.py":
            continue
        name = top.removesuffix(".py")
        package = name if name in packages else SCRIPTS
        packages[package].append(file)
    return packages


def imports_of(packages: dict[str, list[Path]]) -> dict[str, list[str]]:
    """Return for each package the other packages that it imports, in the order of PACKAGES."""
    found: dict[str, list[str]] = {}
    for package, files in packages.items():
        names = {name for file in files for name in _imported(file)}
        found[package] = [other for other in PACKAGES if other in names and other != package]
    return found


def _imported(file: Path) -> Iterator[str]:
    """Yield the top-level names of absolute imports. Relative imports stay inside a package."""
    for node in ast.walk(ast.parse(file.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            yield from (alias.name.partition(".")[0] for alias in node.names)
        elif isinstance(node, ast.ImportFrom) and node.level == 0:
            yield (node.module or "").partition(".")[0]


def check_flow(project: Path) -> None:
    """Check that each function of `FLOW` is in the file that `FLOW` gives.

    Raises:
        FileNotFoundError: A file does not exist.
        LookupError: A function does not exist.
    """
    for name, file, _ in FLOW:
        nodes: list[ast.stmt] = ast.parse((project / file).read_text(encoding="utf-8")).body
        for part in name.split("."):
            named = [node for node in nodes if getattr(node, "name", None) == part]
            if not named:
                raise LookupError(f"{file} has no {name}: correct FLOW in scripts/draw_design.py")
            nodes = getattr(named[0], "body", [])


def text(x: int, y: int, content: str, style: str = "") -> str:
    return f'<text x="{x}" y="{y}"{style}>{escape(content)}</text>'


def box(x: int, y: int, width: int, height: int, fill: str) -> str:
    place = f'x="{x}" y="{y}" width="{width}" height="{height}"'
    return f'<rect {place} rx="6" fill="{fill}" stroke="#888"/>'


def line(points: list[tuple[int, int]], color: str = "#555") -> str:
    """Draw a line through points, with an arrowhead at its end."""
    path = " ".join(f"{x},{y}" for x, y in points)
    drawn = f'<polyline points="{path}" fill="none" stroke="{color}" stroke-width="1.5"/>'
    (before_x, before_y), (x, y) = points[-2:]
    dx = (x > before_x) - (x < before_x)
    dy = (y > before_y) - (y < before_y)
    left = (x - 8 * dx + 4 * dy, y - 8 * dy + 4 * dx)
    right = (x - 8 * dx - 4 * dy, y - 8 * dy - 4 * dx)
    head = " ".join(f"{a},{b}" for a, b in [(x, y), left, right])
    return f'{drawn}\n<polygon points="{head}" fill="{color}"/>'


def names_in(package: str, files: list[Path]) -> list[str]:
    """Return the modules of a package, or the classes of errors.py."""
    if package == SCRIPTS:
        return [file.name for file in files]
    if package == "errors":
        nodes = ast.parse(files[0].read_text(encoding="utf-8")).body
        return [node.name for node in nodes if isinstance(node, ast.ClassDef)]
    return [file.stem for file in files]


def draw_packages(packages: dict[str, list[Path]], top: int) -> tuple[list[str], int]:
    """Draw the packages one below the other, and their imports.

    Returns:
        The drawing, and the y coordinate below the packages.
    """
    drawn: list[str] = []
    places: dict[str, tuple[int, int]] = {}
    y = top
    for package, files in packages.items():
        lines = textwrap.wrap(", ".join(names_in(package, files)), COLUMNS)
        height = (len(lines) + 1) * LINE + 14
        title = {SCRIPTS: "scripts", "errors": "errors.py"}.get(package, f"{package}/")
        drawn.append(
            box(MARGIN, y, PACKAGE_WIDTH, height, "#fff4d6" if package == "model" else "#fff")
        )
        drawn.append(text(MARGIN + 12, y + 21, title, ' font-weight="bold"'))
        drawn.append(text(MARGIN + 110, y + 21, PACKAGES[package], ' fill="#555"'))
        for number, words in enumerate(lines, 1):
            style = ' font-family="monospace" font-size="11"'
            drawn.append(text(MARGIN + 12, y + 21 + number * LINE, words, style))
        places[package] = (y, height)
        y += height + GAP
    return drawn + _draw_imports(imports_of(packages), places), y


def _draw_imports(imports: dict[str, list[str]], places: dict[str, tuple[int, int]]) -> list[str]:
    drawn: list[str] = []
    order = list(places)
    right = MARGIN + PACKAGE_WIDTH
    importers = [package for package in order if imports[package]]
    for number, package in enumerate(importers):
        y, height = places[package]
        start = y + height - 8
        x = right + 24 + LANE * (len(importers) - number - 1)
        color = COLORS[number % len(COLORS)]
        for other in imports[package]:
            other_y, other_height = places[other]
            share = (number + 1) * other_height // (len(importers) + 2)
            end = other_y + share
            drawn.append(line([(right, start), (x, start), (x, end), (right, end)], color))
    return drawn


def draw_flow(top: int) -> tuple[list[str], int]:
    """Draw the functions in rows from left to right.

    Returns:
        The drawing, and the y coordinate of its lower edge.
    """
    places = [
        (
            MARGIN + (n % IN_A_ROW) * (STEP_WIDTH + STEP_GAP),
            top + (n // IN_A_ROW) * (STEP_HEIGHT + STEP_GAP),
        )
        for n in range(len(FLOW))
    ]
    drawn: list[str] = []
    for (x, y), (name, file, result) in zip(places, FLOW, strict=True):
        drawn.append(box(x, y, STEP_WIDTH, STEP_HEIGHT, "#fff"))
        drawn.append(text(x + 12, y + 20, name, ' font-weight="bold"'))
        drawn.append(text(x + 12, y + 38, file, ' font-family="monospace" font-size="11"'))
        drawn.append(text(x + 12, y + 56, f"→ {result}", ' fill="#555"'))
    middle = STEP_HEIGHT // 2
    for (x, y), (next_x, next_y) in pairwise(places):
        if y == next_y:
            drawn.append(line([(x + STEP_WIDTH, y + middle), (next_x, y + middle)]))
            continue
        turn = y + STEP_HEIGHT + STEP_GAP // 2
        start = x + STEP_WIDTH // 2
        end = next_x + STEP_WIDTH // 2
        points = [(start, y + STEP_HEIGHT), (start, turn), (end, turn), (end, next_y)]
        drawn.append(line(points))
    return drawn, places[-1][1] + STEP_HEIGHT


def draw(project: Path) -> str:
    """Return the drawing of a project as SVG."""
    check_flow(project)
    heading = ' font-size="16" font-weight="bold"'
    packages, bottom = draw_packages(modules_of(project), MARGIN + 26)
    flow, end = draw_flow(bottom + 44)
    head = (
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {WIDTH} {end + MARGIN}" '
        f'width="{WIDTH}" font-family="sans-serif" font-size="13">'
    )
    parts = [
        head,
        f'<rect width="{WIDTH}" height="{end + MARGIN}" fill="#fafafa"/>',
        text(
            MARGIN,
            MARGIN + 10,
            "Packages: each arrow is an import; all arrows point down",
            heading,
        ),
        *packages,
        text(MARGIN, bottom + 28, "Data flow", heading),
        *flow,
        "</svg>",
    ]
    return "\n".join(parts) + "\n"


def main() -> None:
    with tempfile.TemporaryDirectory() as folder:
        PICTURE.write_text(draw(render(Path(folder))), encoding="utf-8", newline="\n")
    print(f"{PICTURE}: written")


if __name__ == "__main__":
    main()
