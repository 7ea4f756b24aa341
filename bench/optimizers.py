"""Compare the validation losses of all optimizers, and of `--ema`, after the same number of steps.

python bench/optimizers.py

The script renders a causal_lm project and trains the base model `tiny` from random weights on the
sample data: with several learning rates and one seed for each optimizer, then with the best
learning rate and a second seed. `--ema` is compared with the same runs without `--ema`.

The result of each run is added to bench/results/optimizers.json. Runs that are already in the file
are not repeated, so an interrupted benchmark can be restarted. Optimizers whose packages are not
installed are omitted.
"""

import importlib.util
import json
import os
import statistics
import subprocess
import sys
import tempfile
from importlib.metadata import version
from pathlib import Path

from common import ROOT, environment, render, table

RESULTS = ROOT / "bench" / "results"
JSON = RESULTS / "optimizers.json"
STEPS = 72  # one epoch of the sample data
SEEDS = (1, 2)
RATES = {
    "adamw": (1e-3, 2e-3, 4e-3, 8e-3),
    "muon": (4e-3, 8e-3, 1.6e-2, 3.2e-2),
    "schedule_free": (4e-3, 8e-3, 1.6e-2),
    "adamw_8bit": (2e-3, 4e-3, 8e-3),
    "sgd": (0.1, 0.3, 1.0),
}
PACKAGES = {"schedule_free": "schedulefree", "adamw_8bit": "bitsandbytes"}
DECAY = 0.9
ENVIRONMENT = {
    **os.environ,
    "HF_HUB_OFFLINE": "1",
    "OMP_NUM_THREADS": "1",
    "ACCELERATE_USE_CPU": "true",
}


class Bench:
    """Trains in a project, and keeps the results in a file."""

    def __init__(self, project: Path):
        self.project = project
        self.results = json.loads(JSON.read_text(encoding="utf-8")) if JSON.exists() else {}

    def loss(self, seed: int, arguments: str) -> float:
        """Return the validation loss after the last step; train if the loss is not in the file."""
        key = f"--seed {seed} {arguments}"
        if key not in self.results:
            with tempfile.TemporaryDirectory() as folder:
                command = [sys.executable, "train.py", "--outdir", f"{folder}/run", *key.split()]
                command += ["--max_steps", str(STEPS)]
                subprocess.run(command, cwd=self.project, env=ENVIRONMENT, check=True)
                log = json.loads(Path(folder, "run", "log.json").read_text(encoding="utf-8"))
            self.results[key] = list(log.values())[-1]["valid_log"]["loss"]
            JSON.write_text(json.dumps(self.results, indent=1) + "\n", encoding="utf-8")
        return self.results[key]

    def best_rate(self, optimizer: str) -> float:
        losses = {
            lr: self.loss(SEEDS[0], f"--optimizer {optimizer} --lr {lr}") for lr in RATES[optimizer]
        }
        return min(losses, key=lambda lr: losses[lr])

    def row(self, name: str, arguments: str) -> list[str]:
        losses = [self.loss(seed, arguments) for seed in SEEDS]
        values = ", ".join(f"{loss:.3f}" for loss in losses)
        return [name, f"`{arguments}`", f"{statistics.mean(losses):.3f} ({values})"]


def markdown(bench: Bench) -> str:
    kinds = [k for k in RATES if k not in PACKAGES or importlib.util.find_spec(PACKAGES[k])]
    packages = {PACKAGES[kind]: version(PACKAGES[kind]) for kind in kinds if kind in PACKAGES}
    versions = {**environment(), **packages}
    sweep = []
    compared = []
    best = {}
    for kind in kinds:
        best[kind] = bench.best_rate(kind)
        for lr in RATES[kind]:
            loss = bench.loss(SEEDS[0], f"--optimizer {kind} --lr {lr}")
            sweep.append([kind, lr, f"{loss:.3f}"])
        compared.append(bench.row(kind, f"--optimizer {kind} --lr {best[kind]}"))
    adamw = f"--optimizer adamw --lr {best['adamw']}"
    averaged = []
    for schedule in ("linear", "constant"):
        suffix = "" if schedule == "linear" else f" --lr_scheduler_type {schedule}"
        averaged.append(bench.row(schedule, adamw + suffix))
        averaged.append(bench.row(f"{schedule}, average", f"{adamw}{suffix} --ema {DECAY}"))
    return f"""# Optimizers and weight averaging

Written by `python bench/optimizers.py`. {"; ".join(f"{k} {v}" for k, v in versions.items())}.

Task: causal_lm with its sample data and the base model `tiny` with random weights, {STEPS} steps
of 16 examples, default values of all other arguments. The tables have the validation loss after
the last step. The runs are short and the model is tiny. They show that each optimizer trains, and
with which learning rates, but nothing about other models.

Each optimizer has the best of its learning rates below, chosen with seed {SEEDS[0]}. The loss is
the mean over the seeds {SEEDS[0]} and {SEEDS[1]}, with the loss of each seed in brackets:

{table("optimizer", "arguments", "loss", rows=compared)}
All learning rates, seed {SEEDS[0]}:

{table("optimizer", "lr", "loss", rows=sweep)}
AdamW with and without an average of the weights:

{table("schedule", "arguments", "loss", rows=averaged)}"""


def main() -> None:
    with tempfile.TemporaryDirectory() as folder:
        bench = Bench(render("causal_lm", Path(folder)))
        text = markdown(bench)
    (RESULTS / "optimizers.md").write_text(text, encoding="utf-8")


if __name__ == "__main__":
    main()
