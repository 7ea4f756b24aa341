"""Run three Optuna trials; check that a further run repeats the loss of the last trial.

Run this script in the folder of a project.
"""

import json
import sys
from pathlib import Path

import optuna

sys.path.insert(0, str(Path.cwd()))

import train  # noqa: E402

SHORT = ["--max_steps", "4", "--valid_steps", "4", "--batch_size", "8"]


def loss_of(outdir: str, lr: float) -> float:
    train.main([*SHORT, "--lr", str(lr), "--outdir", outdir])
    log = json.loads((Path(outdir) / "log.json").read_text(encoding="utf-8"))
    return log["Epoch 0"]["valid_log"]["loss"]


def objective(trial: optuna.Trial) -> float:
    return loss_of(f"trial{trial.number}", trial.suggest_float("lr", 1e-4, 1e-2, log=True))


if __name__ == "__main__":
    study = optuna.create_study(sampler=optuna.samplers.RandomSampler(0))
    study.optimize(objective, n_trials=3)
    last = study.trials[-1]
    assert len({trial.value for trial in study.trials}) == 3
    assert loss_of("alone", last.params["lr"]) == last.value
