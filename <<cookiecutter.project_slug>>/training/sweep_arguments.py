"""The arguments of sweep.py, and the arguments that sweep.py passes to train.py."""

import argparse
import itertools
from pathlib import Path

from errors import RunError

from .config import LOSS
from .help import HelpFormatter
from .options import TaskOptions
from .packages import require
from .parser import build_parser as build_train_parser, given_names, insert_yaml

# Arguments of train.py that sweep.py sets in every run.
PLACES = ("outdir", "restore_dir")


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
    parser.add_argument(
        "--seeds",
        type=int,
        nargs="+",
        default=[],
        help="seeds; each trial has one run per seed (and fold)",
    )
    parser.add_argument(
        "--folds", type=int, help="number of parts for cross-validation on --train_input"
    )
    parser.add_argument(
        "--direction",
        choices=("minimize", "maximize"),
        help="whether smaller or larger scores are better; required unless the metric is the loss",
    )
    parser.add_argument("--outdir", default="sweep", help="output directory")
    parser.add_argument(
        "--launch", default="python", help='launch command, e.g. "accelerate launch"'
    )
    return parser


def read_arguments(argv: list[str]) -> tuple[argparse.Namespace, list[str]]:
    """Split the arguments at `--`, and check the arguments of sweep.py.

    Returns:
        Arguments of sweep.py, and arguments of train.py.

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
        RunError: An argument does not exist, is missing or repeated, is set or excluded by
            sweep.py, or is given both after `--` and in `--search`; the values of a flag in
            `--search` are not `true,false`; or the `--config` file is invalid.
    """
    parser = build_train_parser(TaskOptions())
    with_file = insert_yaml(parser, arguments)
    values = parser.parse_args(with_file)
    given = given_names(parser, arguments)  # on the command line, not in a --config file
    given_anywhere = given_names(parser, with_file)
    varied = _varied_names(parser, args.search)
    own = [*PLACES, *(["seed"] if args.seeds else [])]  # override the --config file
    for names, chosen in ((own, given), (["dry_run", *of_folds(args)], given_anywhere)):
        for name in names:
            if name in chosen | varied:
                raise RunError(
                    f"--{name}: set or excluded by sweep.py; expected it neither after `--` nor in "
                    "--search or the --config file"
                )
    for name in sorted(given & varied):
        raise RunError(f"--{name}: given both after `--` and in --search; expected one of them")
    if args.folds and "train_input" not in given_anywhere:
        raise RunError(f"--folds {args.folds}: expected --train_input after `--`")
    metric = values.metric_for_best_model
    if metric != LOSS and args.direction is None:
        raise RunError(f"--metric_for_best_model {metric}: expected --direction, too")
    return metric


def of_folds(args: argparse.Namespace) -> list[str]:
    """Return the names of the arguments of train.py that `--folds` sets or excludes."""
    return ["valid_input", "valid_size", "valid_fold"] if args.folds else []


def _varied_names(parser: argparse.ArgumentParser, search: list[str]) -> set[str]:
    """Return the names of the arguments in `--search`; an alias counts as its argument.

    Raises:
        RunError: An argument does not exist or is repeated, or the values of a flag are not
            `true,false`.
    """
    actions = parser._option_string_actions
    found: set[str] = set()
    for text in search:
        name = text.partition("=")[0]
        if (action := actions.get(f"--{name}")) is None:
            raise RunError(f"--search {text}: train.py has no argument {name}")
        if action.nargs == 0 and text != f"{name}=true,false":
            raise RunError(f"--search {text}: {name} is a flag; expected {name}=true,false")
        if action.dest in found:
            raise RunError(f"--search {text}: {action.dest} is given twice; expected it once")
        found.add(action.dest)
    return found


def runs_of_a_trial(seeds: list[int], folds: int | None) -> dict[str, list[str]]:
    """Return the arguments of each run of a trial, by the name of the run's folder."""
    by_seed = {f"seed-{seed}": [f"--seed={seed}"] for seed in seeds}
    by_fold = {}
    size = 1 / (folds or 1)
    for fold in range(folds or 0):
        by_fold[f"fold-{fold}"] = [f"--valid_size={size}", f"--valid_fold={fold}"]
    if not by_seed or not by_fold:
        return by_seed or by_fold or {"run": []}
    pairs = itertools.product(by_seed.items(), by_fold.items())
    return {f"{seed}-{fold}": [*first, *second] for (seed, first), (fold, second) in pairs}
