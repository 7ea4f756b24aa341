"""Kill runs at random moments, for every task, with one process and with two.

python bench/kills.py [--kills 35] [--markdown FILE]

The script renders a project for each task and runs the project's `tests/helpers/kill_loop.py`,
which kills one process of a run by SIGKILL, resumes and kills the run until it is complete, and
compares the result with that of an uninterrupted run, bit for bit.
"""

import argparse
import json
import subprocess
import sys
import tempfile
from pathlib import Path

from common import TASKS, environment, render, table

COLUMNS = {
    "kills": "kills",
    "in_saves": "during a save",
    "in_start": "before the process group existed",
    "resumed": "resumes from `last/`",
    "runs": "completed runs, bit-identical",
}


def kill(project: Path, kills: int, processes: int, seed: int) -> dict[str, int]:
    """Call the project's `tests/helpers/kill_loop.py`; return its counts."""
    command = [sys.executable, "tests/helpers/kill_loop.py", f"--kills={kills}"]
    command += [f"--processes={processes}", f"--seed={seed}"]
    done = subprocess.run(command, cwd=project, check=True, stdout=subprocess.PIPE, text=True)
    return json.loads(done.stdout)


def markdown(results: list[dict]) -> str:
    rows = [[r["task"], r["processes"], *(r[name] for name in COLUMNS)] for r in results]
    rows.append(["all", "", *(sum(r[name] for r in results) for name in COLUMNS)])
    return f"""# Repeatedly killed runs

Written by `python bench/kills.py`. {"; ".join(f"{k} {v}" for k, v in environment().items())}.

A random process of a run is killed by SIGKILL at a random moment. The run is started again with
`--restore_dir auto`, which resumes it if it has saved a checkpoint, and is killed again, until it
is complete. Runs save after every step. After each kill, the script checks that `last/`, `best/`
and `log.json` are intact. At the end of a run, it checks that weights, optimizer state and log
are bit-identical to those of an uninterrupted run.

{table("task", "processes", *COLUMNS.values(), rows=rows)}"""


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument(
        "--kills",
        type=int,
        default=35,
        help="minimum number of kills for each task and number of processes",
    )
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--markdown", type=Path, help="file for the table")
    args = parser.parse_args()
    results = []
    with tempfile.TemporaryDirectory() as folder:
        for task in TASKS:
            project = render(task, Path(folder))
            for processes in (1, 2):
                figures = kill(project, args.kills, processes, args.seed)
                results.append({"task": task, "processes": processes, **figures})
                print(results[-1], file=sys.stderr)
    text = markdown(results)
    print(text)
    if args.markdown:
        args.markdown.write_text(text, encoding="utf-8")


if __name__ == "__main__":
    main()
