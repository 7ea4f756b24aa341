"""Train with different arguments, seeds or folds, and compare the runs.

python sweep.py --search lr=1e-4,3e-4,1e-3 -- --epochs 1                each of these values
python sweep.py --search lr=log:1e-5..1e-3 --trials 20 -- --epochs 1    20 values chosen by Optuna
python sweep.py --seeds 1 2 3                                           mean and standard deviation
python sweep.py --folds 5 -- --train_input my.jsonl                     cross-validation

Arguments after `--` are passed to train.py. The same command continues an interrupted sweep.
Requires Optuna: pip install -e '.[sweep]'
"""

import argparse
import itertools
import json
import shlex
import signal
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path
from statistics import mean
from typing import Any

from filelock import FileLock, Timeout

from errors import REFUSED, STOPPED, RunError, Stopped
from reporting.sweep_results import Trial, draw, table
from training.atomic import write_file
from training.command_line import exit_code_of
from training.config import LOSS, build_parser as build_train_parser, insert_yaml
from training.help import HelpFormatter
from training.lock import LOCK_FILE
from training.options import TaskOptions
from training.packages import require
from training.search_space import parse_space
from training.study import Study

SIGNALS = ("SIGTERM", "SIGINT", "SIGHUP")
PLACES = ("outdir", "restore_dir", "dry_run")  # arguments of train.py set by this script
OF_FOLDS = ("valid_input", "valid_size", "valid_fold")


def build_parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        usage="sweep.py [arguments] -- [arguments of train.py]", formatter_class=HelpFormatter
    )
    forms = "NAME=A,B,C or NAME=LOW..HIGH or NAME=log:LOW..HIGH"
    parser.add_argument(
        "--search",
        nargs="+",
        default=[],
        metavar="NAME=VALUES",
        help=f"arguments of train.py to vary: {forms}",
    )
    parser.add_argument("--trials", type=int, help="number of trials; all combinations if omitted")
    parser.add_argument("--seeds", type=int, nargs="+", default=[], help="seeds of each trial")
    parser.add_argument(
        "--folds", type=int, help="number of parts for cross-validation on --train_input"
    )
    parser.add_argument(
        "--direction",
        choices=("minimize", "maximize"),
        help="required for a --metric_for_best_model other than loss",
    )
    parser.add_argument("--outdir", default="sweep", help="output directory")
    parser.add_argument(
        "--launch", default="python", help='launch command, e.g. "accelerate launch"'
    )
    return parser


def read_arguments(argv: list[str]) -> tuple[argparse.Namespace, list[str]]:
    """Split and check the arguments.

    Returns:
        Arguments of this script, and arguments of train.py.

    Raises:
        RunError: An argument or a package is missing, or a value is invalid.
    """
    split = argv.index("--") if "--" in argv else len(argv)
    args = build_parser().parse_args(argv[:split])
    require("optuna", "sweep", "sweep.py")
    for name, least in (("trials", 1), ("folds", 2)):
        value = getattr(args, name)
        if value is not None and value < least:
            raise RunError(f"--{name} {value}: expected at least {least}")
    if args.trials is not None and not args.search:
        raise RunError(f"--trials {args.trials}: expected --search, too")
    if len(set(args.seeds)) < len(args.seeds):
        raise RunError("--seeds: a seed is given twice; expected different seeds")
    if not (args.search or args.seeds or args.folds):
        raise RunError("nothing to vary; expected --search, --seeds or --folds")
    args.outdir = Path(args.outdir).expanduser()
    return args, argv[split + 1 :]


def check_train_arguments(args: argparse.Namespace, arguments: list[str]) -> str:
    """Check the arguments of train.py; return the name of the score to compare.

    Raises:
        RunError: An argument does not exist, is set by this script, or is both fixed and varied.
    """
    parser = build_train_parser(TaskOptions())
    values = parser.parse_args(insert_yaml(parser, arguments))
    given = {text[2:].partition("=")[0] for text in arguments if text.startswith("--")}
    varied = {text.partition("=")[0] for text in args.search}
    is_flag = {
        text[2:]: action.nargs == 0 for text, action in parser._option_string_actions.items()
    }
    own = [*PLACES, *(["seed"] if args.seeds else []), *(OF_FOLDS if args.folds else [])]
    for text in args.search:
        name = text.partition("=")[0]
        if name not in is_flag:
            raise RunError(f"--search {text}: train.py has no argument {name}")
        if is_flag[name] and text != f"{name}=true,false":
            raise RunError(f"--search {text}: {name} is a flag; expected {name}=true,false")
    for name in own:
        if name in given | varied:
            raise RunError(
                f"--{name}: set by sweep.py; expected it neither after `--` nor in --search"
            )
    for name in sorted(given & varied):
        raise RunError(f"--{name}: given both after `--` and in --search; expected one of them")
    if args.folds and "train_input" not in given:
        raise RunError(f"--folds {args.folds}: expected --train_input after `--`")
    if values.metric_for_best_model != LOSS and args.direction is None:
        raise RunError(f"{values.metric_for_best_model}: expected --direction, too")
    return values.metric_for_best_model


def runs_of_a_trial(seeds: list[int], folds: int | None) -> dict[str, list[str]]:
    """Return the arguments of each run of a trial, by the name of its folder."""
    by_seed = {f"seed-{seed}": [f"--seed={seed}"] for seed in seeds}
    by_fold = {}
    size = 1 / (folds or 1)
    for fold in range(folds or 0):
        by_fold[f"fold-{fold}"] = [f"--valid_size={size}", f"--valid_fold={fold}"]
    if not by_seed or not by_fold:
        return by_seed or by_fold or {"run": []}
    pairs = itertools.product(by_seed.items(), by_fold.items())
    return {f"{seed}-{fold}": [*first, *second] for (seed, first), (fold, second) in pairs}


class Training:
    """Run train.py, and forward signals to it.

    Args:
        launch: Launch command, such as "accelerate launch". "python" means this interpreter.
    """

    def __init__(self, launch: str):
        self._command = [sys.executable if w == "python" else w for w in shlex.split(launch)]
        self._child: subprocess.Popen | None = None
        self._is_stopped = False
        for name in SIGNALS:
            if hasattr(signal, name):
                signal.signal(getattr(signal, name), self._forward)

    def run(self, arguments: list[str], output: Path) -> int:
        """Run train.py; return its exit code.

        Args:
            output: File to append the output to.

        Raises:
            Stopped: This process or train.py received a signal.
        """
        command = [*self._command, "train.py", *arguments]
        with output.open("ab") as file:
            self._child = subprocess.Popen(command, stdout=file, stderr=subprocess.STDOUT)
            code = self._child.wait()
        # A launcher replaces the exit code of train.py, so the signal is recorded here.
        if self._is_stopped or code == STOPPED:
            raise Stopped("stopped; run the same command to continue")
        return code

    def _forward(self, number: int, frame: Any) -> None:
        self._is_stopped = True
        if self._child is not None and self._child.poll() is None:
            self._child.send_signal(number)


@dataclass(frozen=True)
class Sweep:
    """The settings shared by all trials.

    Attributes:
        arguments: Arguments of train.py for all runs.
        runs: The runs of each trial: a dict from the folder name of a run to its further arguments.
        metric: Name of the score to compare.
        direction: "minimize" or "maximize".
    """

    outdir: Path
    arguments: list[str]
    runs: dict[str, list[str]]
    metric: str
    direction: str

    def train(self, number: int, values: dict[str, Any], training: Training) -> float | None:
        """Train all runs of a trial; return their mean score, or None if a run failed.

        Raises:
            RunError: train.py rejects its arguments.
            Stopped: This process or train.py received a signal.
        """
        chosen = [_as_argument(name, value) for name, value in values.items()]
        chosen = [argument for argument in chosen if argument]
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
                print(f"  failed (exit code {code}): see {output}", flush=True)
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
            raise RunError(f"{self.outdir}: all {len(failed)} trials failed")
        text = table(trials, failed, self.metric)
        write_file(self.outdir / "results.md", text + "\n")
        write_file(self.outdir / "results.png", draw(trials, self.metric))
        print(text, f"See {self.outdir}/results.md and results.png", sep="\n\n")


def _last_line(file: Path) -> str:
    lines = file.read_text(encoding="utf-8", errors="replace").splitlines()
    return lines[-1] if lines else "no output"


def _as_argument(name: str, value: Any) -> str:
    """Format an argument of train.py; return an empty string for a disabled flag."""
    if value in ("true", "false"):
        return f"--{name}" if value == "true" else ""
    return f"--{name}={value}"


def main(argv: list[str] | None = None) -> None:
    args, arguments = read_arguments(sys.argv[1:] if argv is None else argv)
    space = parse_space(args.search)
    metric = check_train_arguments(args, arguments)
    runs = runs_of_a_trial(args.seeds, args.folds)
    direction = args.direction or "minimize"
    sweep = Sweep(args.outdir, arguments, runs, metric, direction)
    args.outdir.mkdir(parents=True, exist_ok=True)
    try:
        with FileLock(args.outdir / LOCK_FILE, timeout=0):
            about = {"search": args.search, "seeds": args.seeds, "folds": args.folds}
            about |= {"arguments": arguments, "metric": metric, "direction": direction}
            study = Study(args.outdir, about, space, args.trials)
            training = Training(args.launch)
            for number, values in study.to_train():
                study.record(number, sweep.train(number, values, training))
            sweep.report(study)
    except Timeout:
        raise RunError(f"{args.outdir}: another sweep is using this folder") from None


if __name__ == "__main__":
    sys.exit(exit_code_of(main))
