"""Train with different arguments, seeds or folds, and compare the runs.

python sweep.py --search lr=1e-4,3e-4,1e-3 -- --epochs 1                each of these values
python sweep.py --search lr=log:1e-5..1e-3 --trials 20 -- --epochs 1    20 values chosen by Optuna
python sweep.py --seeds 1 2 3                                           mean and standard deviation
python sweep.py --folds 5 -- --train_input my.jsonl                     cross-validation

Arguments after `--` are passed to train.py. The same command resumes an interrupted sweep.
Requires Optuna: pip install -e '.[sweep]'
"""

import json
import sys
from dataclasses import dataclass
from pathlib import Path
from statistics import mean
from typing import Any

from filelock import FileLock, Timeout

from errors import REFUSED, RunError
from reporting.sweep_results import Trial, draw, table
from training.atomic import write_file
from training.command_line import exit_code_of
from training.lock import LOCK_FILE
from training.search_space import parse_space
from training.study import Study
from training.sweep_arguments import check_train_arguments, read_arguments, runs_of_a_trial
from training.train_process import Training


@dataclass(frozen=True)
class Sweep:
    """The settings shared by all trials.

    Attributes:
        arguments: Arguments of train.py for all runs.
        runs: Additional arguments of each run of a trial, such as its seed, by the name of the
            run's folder.
        metric: Name of the score to compare.
        direction: "minimize" or "maximize".
    """

    outdir: Path
    arguments: list[str]
    runs: dict[str, list[str]]
    metric: str
    direction: str

    def train(self, number: int, values: dict[str, Any], training: Training) -> float | None:
        """Train all runs of a trial; return the mean of the best scores, or None if a run failed.

        Raises:
            RunError: train.py rejects the arguments, or ends with another error of exit code 2.
                After a loss or gradient that is not finite, the run counts as failed instead.
            Stopped: This process or train.py received a signal.
        """
        chosen = [_as_argument(name, value) for name, value in values.items()]
        for name, own in self.runs.items():
            folder = self.outdir / f"trial-{number:03d}" / name
            folder.parent.mkdir(exist_ok=True)
            print(f"{folder}: {' '.join([*chosen, *own])}", flush=True)
            output = folder.with_name(f"{name}.txt")
            places = ["--outdir", str(folder), "--restore_dir", "auto"]
            code = training.run([*self.arguments, *chosen, *own, *places], output)
            if code == REFUSED and not (folder / "bad_batch").exists():
                raise RunError(f"{folder}: {_last_line(output)}")
            score = None if code else self.score(folder)
            if score is None:
                reason = f"exit code {code}" if code else f"{self.metric} is never a number"
                print(f"  failed ({reason}): see {output}", flush=True)
                return None
            print(f"  {self.metric} {score:.4g}", flush=True)
        return mean(self.scores(number))

    def scores(self, number: int) -> list[float]:
        """Return the best score of each run of a trial."""
        folder = self.outdir / f"trial-{number:03d}"
        found = [self.score(folder / name) for name in self.runs]
        return [score for score in found if score is not None]

    def score(self, folder: Path) -> float | None:
        """Return the best score of all validations of a run; None if no score is a number."""
        log = json.loads((folder / "log.json").read_text(encoding="utf-8"))
        scores = [entry["valid_log"][self.metric] for entry in log.values()]
        numbers = [score for score in scores if score is not None]
        best = min if self.direction == "minimize" else max
        return best(numbers, default=None)

    def report(self, study: Study) -> None:
        """Print and write the results of all trials so far.

        Raises:
            RunError: No trial has a score.
        """
        trials = [Trial(number, v, self.scores(number)) for number, v in study.finished()]
        trials.sort(key=lambda trial: trial.mean, reverse=self.direction == "maximize")
        failed = [Trial(number, values, []) for number, values in study.failed()]
        if not trials:
            raise RunError(f"{self.outdir}: none of the trials has a score ({len(failed)} failed)")
        text = table(trials, failed, self.metric)
        write_file(self.outdir / "results.md", text + "\n")
        write_file(self.outdir / "results.png", draw(trials, self.metric))
        print(text, f"See {self.outdir}/results.md and results.png", sep="\n\n")


def _last_line(file: Path) -> str:
    lines = file.read_text(encoding="utf-8", errors="replace").splitlines()
    return lines[-1] if lines else "no output"


def _as_argument(name: str, value: Any) -> str:
    """Format an argument of train.py."""
    if value in ("true", "false"):
        return f"--{name}" if value == "true" else f"--no_{name}"
    return f"--{name}={value}"


def main(argv: list[str] | None = None) -> None:
    args, arguments = read_arguments(sys.argv[1:] if argv is None else argv)
    space = parse_space(args.search)
    metric = check_train_arguments(args, arguments)
    runs = runs_of_a_trial(args.seeds, args.folds)
    direction = args.direction or "minimize"
    sweep = Sweep(args.outdir, arguments, runs, metric, direction)
    training = Training(args.launch)
    try:
        args.outdir.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise RunError(f"{args.outdir}: not writable ({error.strerror})") from None
    try:
        with FileLock(args.outdir / LOCK_FILE, timeout=0):
            about = {"search": args.search, "seeds": args.seeds, "folds": args.folds}
            about |= {"arguments": arguments, "metric": metric, "direction": direction}
            study = Study(args.outdir, about, space, args.trials)
            for number, values in study.to_train():
                study.record(number, sweep.train(number, values, training))
            sweep.report(study)
    except Timeout:
        raise RunError(f"{args.outdir}: another sweep is using this folder") from None


if __name__ == "__main__":
    sys.exit(exit_code_of(main))
