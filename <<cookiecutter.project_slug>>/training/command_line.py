"""The command lines of predict.py and export.py, and checks before torch is imported."""

import argparse
import gc
import os
import sys
from collections.abc import Callable
from pathlib import Path

from errors import REFUSED, STOPPED, RunError, Stopped, UserError

from .help import HelpFormatter, OneOrMore
from .options import TaskOptions

OUTPUT = "predictions.jsonl"
DTYPES = ("float32", "bfloat16", "float16")


def exit_code_of(main: Callable[[], object]) -> int:
    """Run a function that does not use torch; return the exit code for the process."""
    try:
        main()
    except (UserError, Stopped) as error:
        print(f"{Path(sys.argv[0]).name}: {error}", file=sys.stderr)
        return STOPPED if isinstance(error, Stopped) else REFUSED
    return 0


def check_early(check: Callable[[list[str]], object]) -> None:
    """Check the arguments of a script before it imports torch, which takes seconds.

    With several processes, check nothing: the ranks check their arguments together later.

    Garbage collection, which would take a tenth of the time of the imports, is disabled until the
    script calls `run` of launch.py.
    """
    gc.disable()
    is_alone = int(os.environ.get("WORLD_SIZE", 1)) == 1
    code = exit_code_of(lambda: check(sys.argv[1:])) if is_alone else 0
    if code:
        sys.exit(code)


def build_predict_parser(task: TaskOptions) -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(usage="predict.py [arguments]", formatter_class=HelpFormatter)
    parser.add_argument(
        "--checkpoint", default="outputs/best", help="folder or Hub id of the checkpoint"
    )
    files: dict = {"nargs": "+", "action": OneOrMore, "metavar": "FILE"}
    parser.add_argument("--input", help="input file(s); interactive if omitted", **files)
    parser.add_argument("--output", help=f"output file ({OUTPUT})")
    parser.add_argument("--column", nargs="+", help="columns to read (default: as in training)")
    text = "maximum number of examples per batch and process"
    parser.add_argument("--batch_size", type=int, default=32, help=text)
    parser.add_argument("--max_len", type=int, help="maximum sequence length in tokens")
    for name, option in task.predict_options.items():
        parser.add_argument(f"--{name}", **option)
    return parser


def parse_predict_args(argv: list[str]) -> argparse.Namespace:
    """Parse and check the arguments.

    Raises:
        RunError: `--batch_size` or `--max_len` is not positive, the folder of `--output` does not
            exist, `--output` exists and is not a regular file, or `--output` or `--column` is given
            without `--input`.
    """
    task = TaskOptions()
    args = build_predict_parser(task).parse_args(argv)
    for name in ("batch_size", "max_len"):
        value = getattr(args, name)
        if value is not None and value <= 0:
            raise RunError(f"--{name} {value}: expected more than 0")
    args.checkpoint = str(Path(args.checkpoint).expanduser())
    output = Path(args.output or OUTPUT).expanduser()
    if not output.parent.is_dir():
        raise RunError(f"--output {output}: there is no folder {output.parent}")
    if output.exists() and not output.is_file():
        kind = "a folder" if output.is_dir() else "not a regular file"
        raise RunError(f"--output {output}: {kind}; expected a new or regular file")
    for name in ("output", "column"):
        if args.input is None and (value := getattr(args, name)) is not None:
            shown = " ".join(value) if isinstance(value, list) else value
            raise RunError(f"--{name} {shown}: expected --input, too")
    # At the end, predict.py replaces the output file. If `--output` is a link, such as /dev/stdout,
    # replace the file to which it points, not the link.
    args.output = output.resolve() if output.is_symlink() else output
    return args


def build_export_parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(usage="export.py [arguments]", formatter_class=HelpFormatter)
    parser.add_argument("--checkpoint", default="outputs/best", help="checkpoint to export")
    parser.add_argument("--output", required=True, help="output folder, new or empty")
    parser.add_argument("--dtype", choices=DTYPES, default="float32", help="dtype of the weights")
    text = "also write model.onnx (classifiers only)"
    parser.add_argument("--onnx", action="store_true", help=text)
    return parser
