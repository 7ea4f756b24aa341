"""The command line of train.py, and its `--config` file.

This module does not import torch, so that `--help` and errors in arguments are printed quickly.
"""

import argparse
import difflib
from pathlib import Path
from typing import Any, get_args

import yaml

from errors import RunError

from .config import (
    DATA,
    LORA,
    REPORT,
    RUN,
    SPEED,
    STEP,
    VALIDATION,
    check_ranges,
    default_of,
    option_fields,
)
from .help import HelpFormatter
from .options import TaskOptions

UNSET = object()


def check_form(argv: list[str]) -> None:
    """Check names, types and ranges of arguments; with `--help`, print the help.

    Raises:
        RunError: A value is out of range, or the YAML file cannot be read or is invalid.
        SystemExit: The help was printed, or argparse rejects an argument.
    """
    parser = build_parser(TaskOptions())
    check_ranges(vars(parser.parse_args(insert_yaml(parser, argv))))


def build_parser(task: TaskOptions) -> argparse.ArgumentParser:
    """Build the parser from the fields of `RunConfig` and the options of the task."""
    parser = argparse.ArgumentParser(
        usage="train.py [arguments]",
        formatter_class=HelpFormatter,
        allow_abbrev=False,  # insert_yaml would not recognize --conf as --config
        epilog="Some names of transformers.TrainingArguments, such as --output_dir, also work. "
        "--no_NAME switches off a flag of a resumed run.",
    )
    groups = {name: parser.add_argument_group(name) for name in (DATA, RUN, STEP, VALIDATION)}
    groups |= {name: parser.add_argument_group(name) for name in (LORA, SPEED, REPORT)}
    for spec in option_fields():
        default = task.base_model if spec.name == "model_id" else default_of(spec)
        arguments = {**_kind(spec), **spec.metadata["arguments"]}
        group = groups[spec.metadata["group"]]
        text = spec.metadata["help"].replace("%", "%%")
        group.add_argument(f"--{spec.name}", default=default, help=text, **arguments)
        for alias in spec.metadata["aliases"]:
            parser.add_argument(
                f"--{alias}",
                dest=spec.name,
                default=default,
                help=argparse.SUPPRESS,
                **arguments,
            )
    for name, arguments in _task_options(task).items():
        groups[DATA].add_argument(f"--{name}", **arguments)
    _add_negations(parser)
    return parser


def _add_negations(parser: argparse.ArgumentParser) -> None:
    """Add `--no_NAME` for each flag `--NAME`, to switch off the flag of a resumed run."""
    for action in [a for a in parser._actions if isinstance(a, argparse._StoreTrueAction)]:
        parser.add_argument(
            *(f"--no_{text[2:]}" for text in action.option_strings),
            dest=action.dest,
            action="store_false",
            default=action.default,
            help=argparse.SUPPRESS,
        )


def given_names(parser: argparse.ArgumentParser, argv: list[str]) -> set[str]:
    """Return the names of the arguments in `argv`; an alias counts as its argument."""
    blank = argparse.Namespace(**dict.fromkeys(vars(parser.parse_args([])), UNSET))
    values = vars(parser.parse_args(argv, blank))
    return {name for name, value in values.items() if value is not UNSET}


def insert_yaml(parser: argparse.ArgumentParser, argv: list[str]) -> list[str]:
    """Insert the values in the `--config` file before `argv`, so that `argv` takes precedence.

    Raises:
        RunError: The file cannot be read or does not contain a mapping, a key is not an argument or
            is `config` or `help`, an argument is repeated, or the value of a flag is neither true
            nor false.
    """
    finder = argparse.ArgumentParser(add_help=False, allow_abbrev=False)
    finder.add_argument("--config")
    path = finder.parse_known_args(argv)[0].config
    if path is None:
        return argv
    values = _read_yaml(path)
    known = {text[2:]: action for action in parser._actions for text in action.option_strings}
    lines: list[str] = []
    names: dict[str, str] = {}  # for each argument, its name or alias in the file
    for name, value in values:
        if name not in known or name in ("config", "help"):
            near = difflib.get_close_matches(name, known.keys() - {"config", "help"}, n=1)
            hint = f"; did you mean {near[0]}?" if near else ""
            raise RunError(f"--config {path}: no argument {name}{hint}")
        if (other := names.get(known[name].dest)) is not None:
            same = "" if other == name else f", as {other} and as {name}"
            raise RunError(f"--config {path}: {other} is given twice{same}; expected it once")
        names[known[name].dest] = name
        lines += _as_arguments(path, name, value, is_flag=known[name].nargs == 0)
    return [*lines, *argv]


def _read_yaml(path: str) -> list[tuple[str, Any]]:
    """Return the names and values in a YAML file, including each repetition of a name.

    Raises:
        RunError: The file cannot be read, or does not contain a mapping.
    """
    try:
        loader = yaml.SafeLoader(Path(path).expanduser().read_text(encoding="utf-8"))
        root = loader.get_single_node()
        if isinstance(root, yaml.MappingNode):
            build = loader.construct_document
            return [(str(build(name)), build(value)) for name, value in root.value]
    except (OSError, UnicodeDecodeError, yaml.YAMLError) as error:
        reason = " ".join(str(error).split())
        raise RunError(f"--config {path}: cannot be read ({reason})") from None
    raise RunError(f"--config {path}: expected lines of `name: value`")


def _as_arguments(path: str, name: str, value: Any, is_flag: bool) -> list[str]:
    if is_flag:
        if not isinstance(value, bool):
            raise RunError(f"--config {path}: {name}: {value}; expected true or false")
        return [f"--{name}" if value else f"--no_{name}"]
    if isinstance(value, list):
        return [f"--{name}", *map(str, value)]
    return [] if value is None else [f"--{name}={value}"]


def _task_options(task: TaskOptions) -> dict[str, dict]:
    return {**task.data_options, **task.model_options, **task.score_options}


def _kind(spec: Any) -> dict[str, Any]:
    """Return the arguments of `add_argument` that follow from the type of a field."""
    types = get_args(spec.type) or (spec.type,)
    if spec.type is bool:
        return {"action": "store_true"}
    for kind in (int, float):
        if kind in types:
            return {"type": kind}
    return {}
