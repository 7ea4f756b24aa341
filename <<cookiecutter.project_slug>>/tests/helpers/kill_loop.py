"""Kill a run at random moments, again and again, and look at what it comes to in the end.

python tests/killing.py --kills 50 --processes 2
"""

import argparse
import json
import os
import random
import sys
import tempfile
import time
from dataclasses import dataclass
from itertools import count
from pathlib import Path

ROOT = Path(__file__).parent.parent
GRACE = 20.0  # seconds in which a run ends that has lost a process
if __name__ == "__main__":
    os.environ.update(HF_HUB_OFFLINE="1", OMP_NUM_THREADS="1", ACCELERATE_USE_CPU="true")
    os.environ["PYTHONPATH"] = f"{ROOT}{os.pathsep}{ROOT / 'tests'}"
    sys.path.insert(0, str(ROOT))

from outcome import assert_same  # noqa: E402
from real_runs import Run  # noqa: E402
from training.files import STORE, find_fault  # noqa: E402


@dataclass
class Figures:
    """What came of it.

    Attributes:
        kills: How often a process was killed.
        in_saves: How many of these left a save half done.
        in_start: How many left another process waiting for this one, which a launcher ends.
        resumed: How often a run went on from `last/`.
        runs: Runs brought to their end, each in the very bits of one that was left alone.
    """

    kills: int = 0
    in_saves: int = 0
    in_start: int = 0
    resumed: int = 0
    runs: int = 0


def kill_again_and_again(
    arguments: list[str], folder: Path, kills: int, processes: int, seed: int
) -> Figures:
    """Kill one process of a run at random moments, resume, and compare what comes out.

    Args:
        arguments: Of train.py, without an output folder.
        kills: How many to make at least: the last run is brought to its end.

    Raises:
        AssertionError: something was not whole after a kill, or the end differs in a bit.
    """
    chance, figures = random.Random(seed), Figures()
    assert Run(["--help"], folder / "help").wait() == [0]  # and the fork server is ready
    began = time.monotonic()
    whole = Run([*arguments, "--outdir", str(folder / "whole")], folder / "output", processes)
    assert whole.wait() == [0] * processes, whole.output()
    seconds = time.monotonic() - began
    lives = count()
    for number in count():
        if figures.kills >= kills:
            break
        outdir = folder / f"run{number}"
        again = [*arguments, "--outdir", str(outdir), "--restore_dir", "auto"]
        is_over = False
        while not is_over:
            figures.resumed += (outdir / "last").exists()
            run = Run(again, folder / f"output{next(lives)}", processes)
            victim = chance.choice(run.processes)
            victim.join(chance.uniform(0, seconds))
            if victim.exitcode is None:
                victim.kill()
                figures.kills += 1
            is_over = is_done(run, figures)
            figures.in_saves += any((outdir / STORE).glob("*.tmp"))
            look_at(outdir)
        figures.runs += 1
        assert_same(outdir, folder / "whole")
    return figures


def is_done(run: Run, figures: Figures) -> bool:
    """Wait for a run to end by itself; before its group is formed, a death is not noticed."""
    try:
        return not any(run.wait(GRACE))
    except TimeoutError:
        assert "TRAIN" not in run.output()
        figures.in_start += 1
        return False


def look_at(outdir: Path) -> None:
    """What there is has to be whole."""
    for name in ("best", "last"):
        if (outdir / name).is_symlink():
            assert find_fault(outdir / name) is None
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
            "--save_steps=1",
        ]
        arguments += [f"--model_id={ROOT / 'tiny'}", "--epochs=2", "--max_len=64"]
        figures = kill_again_and_again(
            arguments, Path(folder), args.kills, args.processes, args.seed
        )
    print(json.dumps(vars(figures)))


if __name__ == "__main__":
    main()
