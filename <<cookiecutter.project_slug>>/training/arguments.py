"""The arguments of a run: checked, and on going on, those that the run had before."""

import argparse
import difflib
import sys
from pathlib import Path

import yaml
from accelerate.tracking import LOGGER_TYPE_TO_CLASS, get_available_trackers

from errors import RunError

from .checkpoint import OPTIMIZER
from .files import find_whole, is_published
from .optimization import SCHEDULERS
from .state import TrainingState

AUTO = "auto"
RESULTS = ("last", "best", "log.json")
STEPS = ("max_steps", "save_steps", "valid_steps", "logging_steps", "accumulation")
COUNTS = (*STEPS, "epochs", "files_per_epoch", "batch_size", "eval_batch_size", "patience")
AT_LEAST = {**dict.fromkeys(COUNTS, 1), "max_len": 2}  # and 0 for any other number


class OneOrMore(argparse.Action):
    """Keeps a single value as it is, and several as a list."""

    def __call__(self, parser, namespace, values, option_string=None) -> None:
        setattr(namespace, self.dest, values[0] if len(values) == 1 else values)


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the arguments of the machinery."""
    run = parser.add_argument_group("run")
    run.add_argument("--config", help="YAML file of arguments; the command line goes before it")
    run.add_argument("--dry_run", action="store_true", help="look at all before the first step")
    run.add_argument("--outdir", default="outputs", help="folder for all that comes out")
    run.add_argument("--restore_dir", help="go on from this last/; auto: from outdir's, if any")
    run.add_argument("--epochs", type=int, default=3, help="times to see all examples")
    run.add_argument("--files_per_epoch", type=int, help="of many; for data too large to hold")
    run.add_argument("--max_steps", type=int, help="optimizer steps, instead of epochs")
    run.add_argument("--save_steps", type=int, help="save last/ every so many steps, too")
    run.add_argument("--seed", type=int, default=42, help="what all randomness follows from")
    step = parser.add_argument_group("step")
    step.add_argument("--batch_size", type=int, default=16, help="per process, forward pass")
    step.add_argument("--accumulation", type=int, default=1, help="forward passes in a step")
    step.add_argument("--lr", type=float, help="5e-5, or 2e-3 from random weights, if not given")
    step.add_argument(
        "--lr_scheduler_type",
        choices=SCHEDULERS,
        default="linear",
        metavar="NAME",
        help=f"any of {', '.join(SCHEDULERS)}",
    )
    step.add_argument("--num_warmup_steps", type=int, default=0, help="optimizer steps")
    step.add_argument("--weight_decay", type=float, default=0.01, help="of AdamW")
    step.add_argument("--max_grad_norm", type=float, default=1.0, help="clip to this; 0: never")
    valid = parser.add_argument_group("validation")
    valid.add_argument("--valid_steps", type=int, help="validate every so many steps, too")
    valid.add_argument("--eval_batch_size", type=int, default=64, help="per process")
    valid.add_argument("--metric_for_best_model", default="loss", help="what best/ is chosen by")
    valid.add_argument("--patience", type=int, help="end after so many without a better one")
    speed = parser.add_argument_group("speed and memory")
    speed.add_argument("--compile", action="store_true", help="compile the model for speed")
    speed.add_argument("--tf32", action="store_true", help="float32 products of 10 bits, on GPUs")
    speed.add_argument("--gradient_checkpointing", action="store_true", help="save memory")
    speed.add_argument("--attn_implementation", help="such as flex_attention or eager")
    speed.add_argument("--num_workers", type=int, default=0, help="loader processes")
    report = parser.add_argument_group("report")
    trackers = sorted(map(str, LOGGER_TYPE_TO_CLASS))
    report.add_argument(
        "--report_to",
        nargs="*",
        default=[],
        choices=trackers,
        metavar="TRACKER",
        help=f"any of {', '.join(trackers)}",
    )
    report.add_argument("--logging_steps", type=int, default=10, help="steps between points")
    report.add_argument("--push_to_hub", metavar="NAME", help="upload best/ there at the end")


def read_config(parser: argparse.ArgumentParser, argv: list[str]) -> list[str]:
    """Put what the file of `--config` says before the command line, which so goes before it.

    Raises:
        RunError: the file cannot be read, or holds what is no argument.
    """
    finder = argparse.ArgumentParser(add_help=False)
    finder.add_argument("--config")
    path = finder.parse_known_args(argv)[0].config
    if path is None:
        return argv
    try:
        values = yaml.safe_load(Path(path).read_text(encoding="utf-8"))
    except (OSError, UnicodeDecodeError, yaml.YAMLError) as error:
        reason = " ".join(str(error).split())
        raise RunError(f"--config {path}: cannot be read ({reason})") from None
    if not isinstance(values, dict):
        raise RunError(f"--config {path}: expected lines of `name: value`")
    known, lines = vars(parser.parse_args([])), []
    for name, value in values.items():
        if name not in known or name == "config":
            near = difflib.get_close_matches(str(name), known, n=1)
            hint = f"; did you mean {near[0]}?" if near else ""
            raise RunError(f"--config {path}: no argument is named {name}{hint}")
        if known[name] is False:
            if not isinstance(value, bool):
                raise RunError(f"--config {path}: {name}: {value}; expected true or false")
            lines += [f"--{name}"] if value else []
        elif isinstance(value, list):
            lines += [f"--{name}", *map(str, value)]
        elif value is not None:
            lines.append(f"--{name}={value}")
    return [*lines, *argv]


def parse_args(
    parser: argparse.ArgumentParser, argv: list[str] | None = None
) -> tuple[argparse.Namespace, list[str]]:
    """Parse the command line; with `--restore_dir`, what is not given is as it was.

    Returns:
        The arguments, where `restore_dir` is a checkpoint that has been found whole; and notes for
        the screen on what has changed.

    Raises:
        RunError: `restore_dir` is no checkpoint, `outdir` holds another run, a number is out of
            its range, or a tracker is not installed.
    """
    argv = read_config(parser, sys.argv[1:] if argv is None else argv)
    args, notes = parser.parse_args(argv), []
    if is_automatic := args.restore_dir == AUTO:
        last = Path(args.outdir) / "last"
        args.restore_dir = str(last) if is_published(last) else None
    if args.restore_dir is not None:
        folder, fault = find_whole(Path(args.restore_dir))
        if fault is not None:
            notes.append(
                f"{args.restore_dir} is damaged ({fault}); going on from the one before, {folder}"
            )
        if not (folder / OPTIMIZER).is_file():
            raise RunError(f"{folder}: nothing to go on from here; expected a last/, not a best/")
        before = TrainingState.read(folder).args
        before["outdir"] = str(Path(args.restore_dir).parent)  # the folder may have been moved
        parser.set_defaults(**{name: value for name, value in before.items() if name in args})
        args = parser.parse_args(argv)
        args.restore_dir = str(folder)
        for name, value in vars(args).items():
            if name != "restore_dir" and name in before and before[name] != value:
                notes.append(f"--{name} is now {value}; it was {before[name]}")
    elif not is_automatic and any((Path(args.outdir) / name).exists() for name in RESULTS):
        raise RunError(
            f"{args.outdir}: holds a run already; go on with it by --restore_dir {AUTO}, or choose "
            "another --outdir"
        )
    for name, value in vars(args).items():
        if type(value) in (int, float) and not value >= (least := AT_LEAST.get(name, 0)):
            raise RunError(f"--{name} {value}: expected at least {least}")
    if missing := set(args.report_to) - set(map(str, get_available_trackers())):
        names = " ".join(sorted(missing))
        raise RunError(f"--report_to {names}: not installed; expected `pip install {names}`")
    return args, notes
