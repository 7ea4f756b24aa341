"""Combine the command line with the arguments of the checkpoint that a run resumes from."""

from pathlib import Path
from typing import Any

from errors import RunError

from .atomic import STORE, find_intact, is_published
from .config import PATHS, RunConfig, option_fields
from .optimizer_options import OPTIMIZERS
from .options import TaskOptions
from .parser import build_parser, given_names, insert_yaml
from .remote import download_checkpoint, is_remote
from .state import OPTIMIZER_FILE, SavedRun

AUTO = "auto"
RESULTS = ("last", "best", "log.json")
# Arguments that a resumed run cannot change: its adapter or optimizer state depends on them.
FIXED = (
    *("lora_rank", "lora_alpha", "lora_targets", "lora_dora", "base_dtype"),
    *("optimizer", "layer_decay", "head_lr_factor", "ema"),
)


def read_config(
    task: TaskOptions, argv: list[str], intact: str | None = None
) -> tuple[RunConfig, list[str]]:
    """Combine defaults, the arguments of a checkpoint, the YAML file and the command line.

    Args:
        intact: Path of a checkpoint whose checksums have already been verified.

    Returns:
        The configuration, with the path of an intact checkpoint as `restore_dir` (None for a new
        run); and lines to print, for example about a damaged checkpoint, or about arguments that
        differ from those of the resumed run.

    Raises:
        RunError: The YAML file or a value is invalid; a value must not change in a resumed run; an
            argument requires or excludes another one; a package is missing; `restore_dir` cannot
            be downloaded, or has no intact checkpoint with an optimizer state; or `outdir` contains
            another run, or cannot be derived from `restore_dir`.
        SystemExit: argparse rejects an argument, or has printed the help.
    """
    parser = build_parser(task)
    argv = insert_yaml(parser, argv)
    defaults = vars(parser.parse_args([]))
    names = given_names(parser, argv)
    given = {name: v for name, v in vars(parser.parse_args(argv)).items() if name in names}
    for values in (defaults, given):
        values.update({name: _expanded(values[name]) for name in PATHS if name in values})
    checkpoint, notes = _find_checkpoint({**defaults, **given}, intact)
    saved: dict[str, Any] = {}
    resumed = None
    if checkpoint is not None:
        resumed = SavedRun.read(checkpoint)
        saved, more = _saved_arguments(resumed, checkpoint, defaults, given)
        notes += more
    elif "train_input" in given and "valid_input" not in given:
        saved["valid_input"] = None
    values = {**defaults, **saved, **given}
    values["restore_dir"] = None if checkpoint is None else str(checkpoint)
    _set_dependent_defaults(values, {**saved, **given})
    _check_hold_out_is_used(values, given)
    if resumed is not None and values["valid_input"] is None:
        _check_same_hold_out(task, saved, given)
    config = RunConfig(resumed=resumed, **_by_field(values, task))
    config.validate()
    return config, notes


def _saved_arguments(
    resumed: SavedRun, checkpoint: Path, defaults: dict[str, Any], given: dict[str, Any]
) -> tuple[dict[str, Any], list[str]]:
    """Return the saved arguments of a resumed run, and lines to print, for example about changes.

    A `model_id` that the run does not use is removed from `given`.

    Raises:
        RunError: `given` changes an argument that must stay the same; `outdir` contains another
            run; or `outdir` is not given and cannot be derived from `restore_dir`.
    """
    saved = {name: v for name, v in resumed.args.items() if name in defaults}
    _check_fixed({**defaults, **saved}, given)
    place = {**defaults, **given}["restore_dir"]
    if "outdir" not in given:
        saved["outdir"] = _outdir_of(place, defaults)
    elif place != AUTO and not _is_inside(Path(place), Path(given["outdir"])):
        _check_unused(Path(given["outdir"]), place)
    notes = []
    if unknown := sorted(resumed.args.keys() - defaults.keys()):
        notes.append(
            f"{checkpoint} has arguments that train.py does not have: {', '.join(unknown)}"
        )
    notes += _unused_base(saved, given)
    notes += _changes(saved, given)
    if "epochs" in given and "max_steps" not in given and saved.get("max_steps"):
        steps = saved.pop("max_steps")
        notes.append(f"--max_steps {steps} no longer applies, since --epochs is given")
    return saved, notes


def _set_dependent_defaults(values: dict[str, Any], chosen: dict[str, Any]) -> None:
    """Set the defaults that depend on other arguments.

    Args:
        values: All arguments; modified in place.
        chosen: Arguments of the command line and of the resumed run, which keep their values.
    """
    if OPTIMIZERS[values["optimizer"]].averages and "lr_scheduler_type" not in chosen:
        values["lr_scheduler_type"] = "constant_with_warmup"
    if values["lora_rank"] and values["lora_alpha"] is None:
        values["lora_alpha"] = 2 * values["lora_rank"]


def _find_checkpoint(values: dict[str, Any], intact: str | None) -> tuple[Path | None, list[str]]:
    """Return the folder to resume from (None for a new run), and lines to print."""
    outdir = Path(values["outdir"])
    name = values["restore_dir"]
    if name == AUTO and is_published(outdir / "last"):
        name = str(outdir / "last")
    if name in (None, AUTO) or is_remote(name):
        _check_unused(outdir, name)
    if name in (None, AUTO):
        return None, []
    place = download_checkpoint(name) if is_remote(name) else Path(name)
    folder, fault = (place, None) if str(place) == intact else find_intact(place)
    if not (folder / OPTIMIZER_FILE).is_file():
        raise RunError(f"{folder}: has no optimizer state; expected a last/, not a best/")
    if fault is None:
        return folder, []
    line = f"{name} is damaged ({fault}); resuming from the newest intact checkpoint, {folder}"
    return folder, [line]


def _is_inside(checkpoint: Path, outdir: Path) -> bool:
    """Return whether a checkpoint, or the link to it, is in an output directory."""
    places = (checkpoint.resolve(), checkpoint.parent.resolve())
    return any(place.is_relative_to(outdir.resolve()) for place in places)


def _check_unused(outdir: Path, restore_dir: str | None) -> None:
    """Check that an output directory does not contain a run, which would be overwritten.

    Raises:
        RunError: The output directory contains a run.
    """
    # A resumed run writes log.json before its first save. If the run is killed before this save,
    # the directory contains only log.json, and the same command may resume again.
    results = RESULTS if restore_dir is None else ("last", "best")
    if not any((outdir / result).exists() for result in results):
        return
    if restore_dir == AUTO:
        raise RunError(
            f"{outdir}: already contains a run, but no last/ to resume from; choose another "
            "--outdir"
        )
    raise RunError(
        f"{outdir}: already contains a run; resume it with --restore_dir {AUTO}, or choose "
        "another --outdir"
    )


def _outdir_of(place: str, defaults: dict[str, Any]) -> str:
    """Return the output directory of a resumed run if `--outdir` is not given.

    Args:
        place: Value of `--restore_dir`: "auto", a repository, or the path of last/, of a link to
            last/, or of a folder in .checkpoints/. For "auto" and a repository, return the default.

    Raises:
        RunError: The value is none of these.
    """
    restore_dir = Path(place)
    if place == AUTO or is_remote(place):
        return defaults["outdir"]
    if restore_dir.name == "last":
        return str(restore_dir.parent)
    target = restore_dir.resolve()
    if target.parent.name == STORE:
        return str(target.parent.parent)
    if target.name == "last":
        return str(target.parent)
    raise RunError(
        f"--restore_dir {restore_dir}: cannot derive the output directory, since the path does not "
        "end with `last`; expected --outdir as well"
    )


def _changes(saved: dict[str, Any], given: dict[str, Any]) -> list[str]:
    """Return one line for each given argument that differs from its saved value.

    `restore_dir`, `config`, `outdir` and `dry_run` are not compared.
    """
    ignored = ("restore_dir", "config", "outdir", "dry_run")
    return [
        f"--{name} is now {value}; it was {saved[name]}"
        for name, value in given.items()
        if name not in ignored and name in saved and saved[name] != value
    ]


def _check_fixed(saved: dict[str, Any], given: dict[str, Any]) -> None:
    """Check that no argument in `FIXED` is given with a value other than the saved one.

    Raises:
        RunError: An argument in `FIXED` differs.
    """
    for name in FIXED:
        if name in given and given[name] != saved[name]:
            raise RunError(
                f"--{name} {given[name]}: the resumed run has {saved[name]}; expected the same "
                "value, or a new run"
            )


def _unused_base(saved: dict[str, Any], given: dict[str, Any]) -> list[str]:
    """Remove an unused `model_id` from `given`; return a line if it differs from the saved one.

    Without an adapter, a resumed run does not use `model_id`: all weights are in the checkpoint.
    With an adapter, `model_id` can be the new place of a base model that was moved.
    """
    if saved.get("lora_rank"):
        return []
    model_id = given.pop("model_id", saved["model_id"])
    if model_id == saved["model_id"]:
        return []
    return [
        f"--model_id {model_id} is not used: the weights are those of the checkpoint of a run "
        f"that started from {saved['model_id']}"
    ]


def _check_hold_out_is_used(values: dict[str, Any], given: dict[str, Any]) -> None:
    """Check that arguments about held-out examples have an effect.

    Args:
        values: All arguments.
        given: Arguments of the command line.

    Raises:
        RunError: An argument about held-out examples is given, but `valid_input` is not None.
    """
    if values["valid_input"] is None:
        return
    for name in ("valid_size", "valid_fold"):
        if name in given:
            raise RunError(
                f"--{name} {given[name]}: nothing is held out, since the validation data are "
                f"{values['valid_input']}; expected --train_input without --valid_input"
            )


def _check_same_hold_out(task: TaskOptions, saved: dict[str, Any], given: dict[str, Any]) -> None:
    """Check that a resumed run holds out the same examples as before.

    Raises:
        RunError: The resumed run may have trained on examples that would now be held out.
    """
    for name in ("valid_size", "valid_fold", "seed", "max_len", *task.data_options):
        if name in given and given[name] != saved.get(name):
            raise RunError(
                f"--{name} {given[name]}: the resumed run has {saved.get(name)}, and may have "
                "trained on examples that would now be held out; expected the same value, or a "
                "new run"
            )


def _by_field(values: dict[str, Any], task: TaskOptions) -> dict[str, Any]:
    """Group values by the fields of `RunConfig`; options of the task go into three dicts."""
    result = {spec.name: values[spec.name] for spec in option_fields()}
    for kind in ("data_options", "model_options", "score_options"):
        result[kind] = {name: values[name] for name in getattr(task, kind)}
    return result


def _expanded(value: Any) -> Any:
    """Expand `~` at the beginning of a path, or of each path in a list."""
    if isinstance(value, list):
        return [_expanded(part) for part in value]
    if isinstance(value, str) and value.startswith("~"):
        return str(Path(value).expanduser())
    return value
