"""Functions that several benchmarks use: render projects, list versions, format tables."""

import json
import os
import platform
import sys
from contextlib import suppress
from importlib.metadata import version
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT))  # so that hf_template_ext.py is found first

from cookiecutter.main import cookiecutter  # noqa: E402

TASKS: list[str] = json.loads((ROOT / "cookiecutter.json").read_text(encoding="utf-8"))["task"]


def render(task: str, folder: Path) -> Path:
    return Path(
        cookiecutter(
            str(ROOT),
            no_input=True,
            extra_context={"task": task},
            output_dir=str(folder / task),
            accept_hooks=False,  # hooks only check the answers and print the next commands
            default_config={"replay_dir": str(folder), "cookiecutters_dir": str(folder)},
        )
    )


def cpu() -> str:
    with suppress(OSError):
        for line in Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines():
            if line.startswith("model name"):
                return line.partition(":")[2].strip()
    return platform.processor() or platform.machine()


def environment() -> dict[str, str]:
    libraries = ("torch", "transformers", "accelerate")
    return {
        **{name: version(name) for name in libraries},
        "Python": platform.python_version(),
        "machine": f"{cpu()}, {os.cpu_count()} cores",
    }


def table(*head: str, rows: list[list[Any]]) -> str:
    lines = [list(head), ["---"] * len(head), *rows]
    return "".join(f"| {' | '.join(map(str, line))} |\n" for line in lines)
