"""Train the project of each task on its sample data; write the printed lines for the READMEs.

    python scripts/make_shown.py [TASK ...]

For each task, the script writes templates/<task>/shown.md: the lines that the run prints, the names
of the files and folders in outputs/, and the first entry of log.json. For seq2seq, the script also
writes docs/loss.png. Times and speeds are omitted, and the numbers of log.json are rounded, because
they depend on the machine.
"""

import argparse
import json
import os
import re
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

from cookiecutter.main import cookiecutter

ROOT = Path(__file__).resolve().parent.parent
TASKS: list[str] = json.loads((ROOT / "cookiecutter.json").read_text(encoding="utf-8"))["task"]
OFFLINE = {"HF_HUB_OFFLINE": "1", "ACCELERATE_USE_CPU": "true"}
PICTURE_OF = "seq2seq"  # the task whose loss.png is in the README of the template

# What tqdm prints about time: `[00:06<00:00, 58.58it/s, loss=...` and `left=00:12`.
CLOCK = re.compile(r"\[[\d:]+<[\d:?]+, +[\d.?]+(?:it/s|s/it), |, left=[\d:?]+")
DURATION = re.compile(r"^[\d,]+ steps in [\d:]+$")


def render(task: str, folder: Path) -> Path:
    private = {"replay_dir": str(folder / "replay"), "cookiecutters_dir": str(folder / "cached")}
    project = cookiecutter(
        str(ROOT),
        no_input=True,
        extra_context={"task": task},
        output_dir=str(folder),
        default_config=private,
    )
    return Path(project)


def train(project: Path) -> tuple[str, str]:
    """Run train.py with its default arguments; return what it wrote to stdout and to stderr."""
    launcher = Path(sys.executable).with_name("accelerate")
    done = subprocess.run(
        [launcher, "launch", "-q", "train.py"],
        cwd=project,
        env={**os.environ, **OFFLINE},
        capture_output=True,
        encoding="utf-8",
        check=True,
    )
    return done.stdout, done.stderr


def printed_lines(stdout: str, stderr: str) -> list[str]:
    """Return the lines that the terminal shows at the end of a run, without times."""
    bars = [line for line in re.split(r"[\r\n]+", stderr) if ": 100%|" in line]
    last = {bar.partition("%")[0]: bar for bar in bars}  # keep only the last line of each bar
    lines = [line.rstrip() for line in stdout.splitlines() if not DURATION.match(line)]
    start = next(n for n, line in enumerate(lines) if line.startswith("Best: "))
    whole = [
        CLOCK.sub(lambda found: "[" if found[0].startswith("[") else "", bar)
        for bar in last.values()
    ]
    return [*lines[:start], *map(str.rstrip, whole), *lines[start:]]


def first_entry(log_file: Path) -> str:
    """Return the first entry of log.json, rounded to four digits, without times and speed."""
    log = json.loads(log_file.read_text(encoding="utf-8"))
    name, entry = next(iter(log.items()))
    del entry["seconds"]
    del entry["speed"]
    return json.dumps({name: _rounded(entry)}, indent=4)


def _rounded(value: Any) -> Any:
    if isinstance(value, dict):
        return {name: _rounded(item) for name, item in value.items()}
    return float(f"{value:.4g}") if isinstance(value, float) else value


def shown(project: Path) -> str:
    lines = printed_lines(*train(project))
    outputs = project / "outputs"
    names = sorted(path.name for path in outputs.iterdir() if not path.name.startswith("."))
    return "\n".join(
        [
            *("```", "$ accelerate launch train.py", *lines, ""),
            *("$ ls outputs", "  ".join(names), "```", ""),
            *("```json", first_entry(outputs / "log.json"), "```", ""),
        ]
    )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("tasks", nargs="*", metavar="TASK", default=TASKS, help=", ".join(TASKS))
    for task in parser.parse_args().tasks:
        with tempfile.TemporaryDirectory() as folder:
            project = render(task, Path(folder))
            file = ROOT / "templates" / task / "shown.md"
            file.write_text(shown(project), encoding="utf-8", newline="\n")
            if task == PICTURE_OF:
                shutil.copy(project / "outputs" / "loss.png", ROOT / "docs" / "loss.png")
        print(f"{file}: written")


if __name__ == "__main__":
    main()
