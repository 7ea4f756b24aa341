"""Kill runs at random moments, resume them, and compare the results with an uninterrupted run.

python tests/helpers/kill_loop.py --kills 50 --processes 2
"""

import argparse
import json
import os
import random
import sys
import tempfile
import time
from contextlib import nullcontext
from dataclasses import asdict, dataclass
from itertools import count
from pathlib import Path

ROOT = Path(__file__).parent.parent.parent
GRACE = 20.0  # seconds to wait for each process of a run, also after one of them was killed
if __name__ == "__main__":
    os.environ.update(HF_HUB_OFFLINE="1", OMP_NUM_THREADS="1", ACCELERATE_USE_CPU="true")
    os.environ["PYTHONPATH"] = f"{ROOT}{os.pathsep}{ROOT / 'tests'}"
    sys.path[:0] = [str(ROOT), str(ROOT / "tests")]

from helpers.assertions import assert_bit_identical  # noqa: E402
from helpers.processes import Launch, Patch  # noqa: E402
from training.atomic import STORE, find_fault, find_intact, is_published  # noqa: E402


@dataclass
class Counts:
    """Counts of kills and runs.

    Attributes:
        kills: Number of kills.
        in_saves: Number of times that a run ended and left an incomplete save at a new path.
        in_start: Number of kills before the process group existed, in runs of several processes.
            The other processes then wait for the killed process, until this loop kills them as a
            launcher would.
        resumed: Number of resumes from `last/`.
        runs: Number of completed runs. Each is bit-identical to the uninterrupted run.
    """

    kills: int = 0
    in_saves: int = 0
    in_start: int = 0
    resumed: int = 0
    runs: int = 0


def kill_and_resume(
    arguments: list[str],
    folder: Path,
    kills: int,
    processes: int,
    seed: int,
    patch: Patch = nullcontext,
) -> Counts:
    """Kill one process of a run at random moments, resume the run, and compare the results.

    Args:
        arguments: Arguments of train.py, without an output directory.
        kills: Minimum number of kills. The loop goes on until the last run is complete.
        patch: See `Launch`. The uninterrupted run starts without the patch.

    Raises:
        AssertionError: A link refers to a damaged checkpoint, a process hangs in training, a run
            fails without a kill, or a result differs.
        RunError: No version of a checkpoint is intact after a kill.
        JSONDecodeError: log.json is damaged.
        TimeoutError: The uninterrupted run hangs.
    """
    draw = random.Random(seed)
    counts = Counts()
    Launch(["--help"], folder / "help").expect()  # start the fork server before timing
    start = time.monotonic()
    whole = [*arguments, "--outdir", str(folder / "whole")]
    Launch(whole, folder / "output", processes).expect()
    seconds = time.monotonic() - start
    outputs = (folder / f"output{number}" for number in count())
    while counts.kills < kills:
        outdir = folder / f"run{counts.runs}"
        resumable = [*arguments, "--outdir", str(outdir), "--restore_dir", "auto"]
        is_over = False
        while not is_over:
            counts.resumed += (outdir / "last").exists()
            leftovers = unfinished(outdir)
            run = Launch(resumable, next(outputs), processes, patch)
            victim = draw.choice(run.processes)
            victim.join(draw.uniform(0, seconds))
            is_killed = victim.exitcode is None
            if is_killed:
                victim.kill()
                counts.kills += 1
            is_over = has_succeeded(run, counts)
            assert is_over or is_killed, run.output()[-4000:]
            counts.in_saves += bool(unfinished(outdir) - leftovers)
            assert_intact(outdir)
        counts.runs += 1
        assert_bit_identical(outdir, folder / "whole")
    return counts


def unfinished(outdir: Path) -> set[Path]:
    """Return the folders of incomplete saves."""
    return set((outdir / STORE).glob("*.tmp"))


def has_succeeded(run: Launch, counts: Counts) -> bool:
    """Wait for a run to end; return whether all its processes exited with 0.

    Before the process group exists, a process does not detect that another process was killed. The
    remaining processes are then killed after `GRACE` seconds.
    """
    try:
        return not any(run.wait(GRACE))
    except TimeoutError:
        assert "TRAIN" not in run.output()
        counts.in_start += 1
        return False


def assert_intact(outdir: Path) -> None:
    for name in ("best", "last"):
        if (outdir / name).is_symlink():
            assert find_fault(outdir / name) is None
        elif is_published(outdir / name):
            find_intact(outdir / name)
    if (outdir / "log.json").exists():
        json.loads((outdir / "log.json").read_text())


def main() -> None:
    parser = argparse.ArgumentParser(formatter_class=argparse.ArgumentDefaultsHelpFormatter)
    parser.add_argument("--kills", type=int, default=100)
    parser.add_argument("--processes", type=int, default=1)
    parser.add_argument("--seed", type=int, default=0)
    args = parser.parse_args()
    data = ROOT / "data"
    with tempfile.TemporaryDirectory() as folder:
        short = Path(folder) / "train.jsonl"
        lines = (data / "train.jsonl").read_text(encoding="utf-8").splitlines(keepends=True)
        short.write_text("".join(lines[:256]), encoding="utf-8")
        arguments = [
            f"--train_input={short}",
            f"--valid_input={data / 'valid.jsonl'}",
            f"--model_id={ROOT / 'tiny'}",
            *("--save_steps=1", "--epochs=2", "--max_len=64"),
        ]
        counts = kill_and_resume(arguments, Path(folder), args.kills, args.processes, args.seed)
    print(json.dumps(asdict(counts)))


if __name__ == "__main__":
    main()
