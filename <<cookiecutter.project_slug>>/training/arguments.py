"""The arguments of a run: checked, and on going on, those that the run had before."""

import argparse
from pathlib import Path

from . import RunError
from .checkpoint import OPTIMIZER
from .files import find_whole, is_published
from .state import TrainingState

AUTO = "auto"
RESULTS = ("last", "best", "log.json")
AT_LEAST_ONE = (
    "epochs",
    "max_steps",
    "save_steps",
    "batch_size",
    "accumulation",
    "eval_batch_size",
    "patience",
)


def parse_args(
    parser: argparse.ArgumentParser, argv: list[str] | None = None
) -> tuple[argparse.Namespace, list[str]]:
    """Parse the command line; with `--restore_dir`, what is not given is as it was.

    Returns:
        The arguments, where `restore_dir` is a checkpoint that has been found whole; and notes for
        the screen on what has changed.

    Raises:
        RunError: `restore_dir` is no checkpoint, `outdir` holds another run, or a number is out
            of its range.
    """
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
    for name in AT_LEAST_ONE:
        if (value := getattr(args, name)) is not None and value < 1:
            raise RunError(f"--{name} {value}: expected at least 1")
    if args.max_len < 2:
        raise RunError(f"--max_len {args.max_len}: expected at least 2")
    return args, notes
