"""Train a project with and without a SIGKILL, and compare the results.

Run this script in the folder of a project:
python kill_and_resume.py PROCESSES [arguments of train.py]
"""

from __future__ import annotations

import signal
import sys
from functools import partial
from pathlib import Path

sys.path[:0] = [str(Path.cwd()), str(Path.cwd() / "tests")]

from helpers.assertions import (  # noqa: E402
    assert_bit_identical,
    assert_equal_tensors,
    read_weights,
)
from helpers.processes import Launch  # noqa: E402
from helpers.seams import signals_before_step  # noqa: E402
from model.modeling import Model  # noqa: E402

KILLED_AT = 7  # number of completed optimizer steps at the kill
# The resumed run starts after one of these steps: --save_steps saves after steps 4 and 6, but the
# kill can interrupt the save after step 6. If an epoch ends after step 5, the run also saves then.
SAVED_AT = (4, 5, 6)


def train(outdir: Path, processes: int, *arguments: str) -> None:
    command = [*arguments, "--outdir", str(outdir), "--save_steps", "2"]
    print(Launch(command, outdir.with_suffix(".full"), processes).expect())


def train_with_kill(outdir: Path, processes: int, *arguments: str) -> None:
    """Kill all ranks inside an epoch, the last rank first, and resume the run."""
    command = [*arguments, "--outdir", str(outdir), "--save_steps", "2"]
    death = partial(signals_before_step, [signal.SIGKILL], processes - 1, KILLED_AT)
    launch = Launch(command, outdir.with_suffix(".killed"), processes, patch=death)
    launch.processes[-1].join(120)
    launch.kill()
    assert launch.processes[-1].exitcode == -signal.SIGKILL, launch.output(processes - 1)
    resumed = Launch(
        ["--outdir", str(outdir), "--restore_dir", "auto"],
        outdir.with_suffix(".resumed"),
        processes,
    )
    output = resumed.expect()
    assert any(f"; {step} of " in output for step in SAVED_AT), output


def main() -> None:
    processes = int(sys.argv[1])
    arguments = sys.argv[2:]
    folder = Path("runs").resolve()
    folder.mkdir(exist_ok=True)
    whole = folder / f"whole-{processes}"
    killed = folder / f"killed-{processes}"
    train(whole, processes, *arguments)
    train_with_kill(killed, processes, *arguments)
    assert_bit_identical(killed, whole)
    Model.from_pretrained(whole / "best").save_pretrained(folder / "again")
    assert_equal_tensors(read_weights(folder / "again"), read_weights(whole / "best"))


if __name__ == "__main__":
    main()
