"""Compute the gradients and the loss of one step, and the losses and scores of one validation.

`main` can run in several processes. Its command line arguments are: SAMPLE FOLDER, then one or more
pairs BATCH_SIZE EVAL_BATCH_SIZE, then arguments of train.py.
"""

import json
import sys
from collections.abc import Sequence
from itertools import takewhile
from pathlib import Path

from safetensors.torch import save_file

import train
from reporting.report import Report
from training.contract import Task
from training.opening import open_run
from training.run import Run

GLOBAL_BATCH_SIZE = 8


def measure(
    sample: Path,
    folder: Path,
    batch_size: int,
    eval_batch_size: int,
    *,
    more: Sequence[str] = (),
) -> None:
    """Run one step and one validation, and write two files with the results.

    `PROCESSES-BATCH_SIZE-EVAL_BATCH_SIZE.safetensors` has the gradients. The file with the suffix
    .json has the losses, the scores, and the prediction options that the validation chose.

    Args:
        sample: Folder with the data and the base model.
        folder: Folder for the files.
        more: Further arguments of train.py.
    """
    arguments = [
        *("--train_input", str(sample / "train.jsonl")),
        *("--valid_input", str(sample / "valid.jsonl")),
        *("--model_id", str(sample / "tiny"), "--outdir", str(folder / "run")),
        *("--max_len", "48", "--epochs", "1", "--seed", "1"),
        *("--batch_size", str(batch_size), "--eval_batch_size", str(eval_batch_size)),
        *more,
    ]
    with open_run(Task(), arguments) as run:
        _measure(run, folder, f"{run.group.size}-{batch_size}-{eval_batch_size}")


def _measure(run: Run, folder: Path, name: str) -> None:
    run.state.global_batch_size = GLOBAL_BATCH_SIZE
    run.model.train()
    losses = train.train_step(run, next(run.train_batches.steps()))
    report = {
        "loss": sum(run.group.gather(losses["loss"].item())),
        "valid": train.validate(run, Report(run)),
        "chosen": run.state.predict_options,
    }
    if run.group.is_main:
        parameters = run.accelerator.unwrap_model(run.model).named_parameters()
        gradients = {name: p.grad for name, p in parameters if p.grad is not None}
        save_file(gradients, folder / f"{name}.safetensors")
        (folder / f"{name}.json").write_text(json.dumps(report))


def main() -> None:
    sample, folder = map(Path, sys.argv[1:3])
    sizes = list(map(int, takewhile(str.isdecimal, sys.argv[3:])))
    more = sys.argv[3 + len(sizes) :]
    for batch_size, eval_batch_size in zip(sizes[::2], sizes[1::2], strict=True):
        measure(sample, folder, batch_size, eval_batch_size, more=more)
