"""Measure how long a save blocks the training loop, if the loop waits for the writing and if not.

python saving.py ARGUMENTS OF train.py      (run by bench/saving.py, in the folder of a project)
"""

import json
import sys
import time
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path.cwd()))

import train  # noqa: E402
import training.checkpoint  # noqa: E402
from training.checkpoint import Checkpointer  # noqa: E402
from training.staging import free_memory  # noqa: E402

SECONDS: dict[str, list[float]] = {
    name: [] for name in ("background", "waiting", "step while writing", "step otherwise")
}


def save(self: Checkpointer, *args: Any, **named: Any) -> None:
    """Save; in every other save, report 0 bytes of free memory, so that the loop waits."""
    self.join()  # wait for the preceding save, which would be complete in a real run
    is_waiting = len(SECONDS["background"]) > len(SECONDS["waiting"])
    training.checkpoint.free_memory = (lambda: 0) if is_waiting else free_memory
    start = time.perf_counter()
    original_save(self, *args, **named)
    SECONDS["waiting" if is_waiting else "background"].append(time.perf_counter() - start)


def train_step(run: Any, step: Any) -> Any:
    pending = run.checkpoints._pending
    is_writing = pending is not None and not pending.done()
    start = time.perf_counter()
    losses = original_step(run, step)
    name = "step while writing" if is_writing else "step otherwise"
    SECONDS[name].append(time.perf_counter() - start)
    return losses


original_save, original_step = Checkpointer.save, train.train_step

if __name__ == "__main__":
    Checkpointer.save, train.train_step = save, train_step  # type: ignore[method-assign]
    train.main(sys.argv[1:])
    Path("seconds.json").write_text(json.dumps(SECONDS), encoding="utf-8")
