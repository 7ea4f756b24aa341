"""The configuration of a run: command line, `--config` file, and the arguments of a checkpoint.

This module does not import torch, so that `--help` and errors in arguments are fast.
"""

import argparse
import difflib
import math
from dataclasses import MISSING, dataclass, field, fields
from pathlib import Path
from typing import Any, get_args

import yaml

from errors import RunError

from .atomic import STORE, find_intact, is_published
from .help import HelpFormatter, OneOrMore
from .optimizer_options import OPTIMIZERS, OptimizerOptions
from .options import TaskOptions
from .packages import require
from .remote import download_checkpoint, is_remote
from .set_names import named_sources
from .state import OPTIMIZER_FILE, SavedRun

AUTO = "auto"
LOSS = "loss"  # name of the loss among the scores
RESULTS = ("last", "best", "log.json")
BASE_DTYPES = ("float32", "bfloat16")
HUB_STRATEGIES = ("end", "every_save", "checkpoint")  # as in transformers
# Arguments that a resumed run cannot change: its adapter or optimizer state depends on them.
FIXED = (
    *("lora_rank", "lora_alpha", "lora_targets", "lora_dora", "base_dtype"),
    *("optimizer", "layer_decay", "head_lr_factor", "ema"),
)
CONSTANT = ("constant", "constant_with_warmup")
TRACKERS = (  # of accelerate
    *("aim", "clearml", "comet_ml", "dvclive", "mlflow", "swanlab"),
    *("tensorboard", "trackio", "wandb"),
)
SCHEDULERS = (  # of transformers, except two that depend on a metric
    *("constant", "constant_with_warmup", "cosine", "cosine_warmup_with_min_lr"),
    *("cosine_with_min_lr", "cosine_with_restarts", "inverse_sqrt", "linear"),
    *("polynomial", "warmup_stable_decay"),
)
# Names of PEFT: all linear layers except the head; and the configuration file of an adapter.
ALL_LINEAR = "all-linear"
ADAPTER_FILE = "adapter_config.json"
PATHS = ("train_input", "valid_input", "model_id", "outdir", "restore_dir", "config")
UNSET = object()


def option(
    default: Any,
    text: str,
    *aliases: str,
    group: str,
    at_least: float | None = None,
    **arguments: Any,
) -> Any:
    """Declare a field of `RunConfig`.

    Args:
        text: Its description in `--help`.
        aliases: Further names on the command line, as in transformers.
        group: Its group in `--help`.
        at_least: Smallest valid number.
        arguments: Arguments of `add_argument` that do not follow from the type of the field.
    """
    about = {"help": text, "aliases": aliases, "group": group, "at_least": at_least}
    metadata = {**about, "arguments": arguments}
    if isinstance(default, list):
        return field(default_factory=lambda: list(default), metadata=metadata)
    return field(default=default, metadata=metadata)


DATA = "data and model"
RUN = "run"
STEP = "step"
VALIDATION = "validation"
LORA = "low-rank adapter (LoRA)"
SPEED = "speed and memory"
REPORT = "logging"
FILES: dict[str, Any] = {"nargs": "+", "action": OneOrMore, "metavar": "FILE"}


@dataclass(frozen=True)
class RunConfig:
    """Arguments of train.py. A resumed run keeps the saved values of arguments not given.

    Attributes:
        data_options, model_options, score_options: Arguments of the task, from its `OPTIONS`.
        resumed: The checkpoint to resume from, if any.
    """

    train_input: str | list[str] = option("data/train.jsonl", "training data", group=DATA, **FILES)
    valid_input: str | list[str] | None = option(
        "data/valid.jsonl",
        "validation data, or named sets: NAME=FILE ...",
        group=DATA,
        **FILES,
    )
    valid_size: float = option(
        0.1,
        "fraction of --train_input held out if --valid_input is not given",
        group=DATA,
        at_least=0,
    )
    valid_fold: int = option(
        0, "index of the held-out part, of 1 / VALID_SIZE parts", group=DATA, at_least=0
    )
    model_id: str = option("tiny", "base model: Hub id, NAME@REVISION, or folder", group=DATA)
    max_len: int = option(
        128, "maximum sequence length in tokens", "max_length", group=DATA, at_least=2
    )

    config: str | None = option(
        None, "YAML file of arguments; the command line takes precedence", group=RUN
    )
    dry_run: bool = option(
        False, "print data, schedule and the memory of a step, then exit", group=RUN
    )
    outdir: str = option("outputs", "output directory", "output_dir", group=RUN)
    restore_dir: str | None = option(
        None,
        'checkpoint to resume from: folder, hf://REPOSITORY, or "auto" (OUTDIR/last if it exists)',
        "resume_from_checkpoint",
        group=RUN,
    )
    epochs: int = option(3, "number of epochs", "num_train_epochs", group=RUN, at_least=1)
    files_per_epoch: int | None = option(
        None, "train on N of the input files per epoch", group=RUN, at_least=1
    )
    max_steps: int | None = option(
        None, "number of optimizer steps; overrides --epochs", group=RUN, at_least=1
    )
    save_steps: int | None = option(
        None, "also save last/ every N optimizer steps", group=RUN, at_least=1
    )
    seed: int = option(42, "random seed", group=RUN, at_least=0)

    batch_size: int = option(
        16,
        "examples per process and micro-batch",
        "per_device_train_batch_size",
        group=STEP,
        at_least=1,
    )
    accumulation: int = option(
        1,
        "micro-batches per optimizer step",
        "gradient_accumulation_steps",
        group=STEP,
        at_least=1,
    )
    lr: float | None = option(
        None,
        "peak learning rate (5e-5; 2e-3 for random weights; 2e-4 with --lora_rank)",
        "learning_rate",
        group=STEP,
        at_least=0,
    )
    lr_scheduler_type: str = option(
        "linear",
        f"one of {', '.join(SCHEDULERS)}",
        group=STEP,
        choices=SCHEDULERS,
        metavar="NAME",
    )
    num_warmup_steps: int = option(
        0, "optimizer steps of warm-up", "warmup_steps", group=STEP, at_least=0
    )
    weight_decay: float = option(0.01, "weight decay of matrices", group=STEP, at_least=0)
    max_grad_norm: float = option(
        1.0, "maximum norm of the gradient; 0 for no clipping", group=STEP, at_least=0
    )

    optimizer: str = option(
        "adamw",
        "adamw; muon or adamw_8bit (matrices of hidden layers; AdamW with the same --lr for the "
        "rest); schedule_free (averages the weights instead of decaying the learning rate); sgd",
        group=STEP,
        choices=list(OPTIMIZERS),
        metavar="NAME",
    )
    beta1: float | None = option(
        None, "decay of the first moment of AdamW (0.9)", "adam_beta1", group=STEP, at_least=0
    )
    beta2: float | None = option(
        None, "decay of the second moment of AdamW (0.999)", "adam_beta2", group=STEP, at_least=0
    )
    eps: float | None = option(
        None, "added to the denominator of AdamW (1e-8)", "adam_epsilon", group=STEP, at_least=0
    )
    momentum: float | None = option(
        None, "momentum of muon (0.95) or sgd (0.9)", group=STEP, at_least=0
    )
    layer_decay: float = option(
        1.0,
        "learning rate of each layer, relative to the layer above",
        group=STEP,
        at_least=0,
    )
    head_lr_factor: float = option(
        1.0, "multiply the learning rate of the head by this", group=STEP, at_least=0
    )
    ema: float = option(
        0.0,
        "decay of an exponential moving average of the weights, which is validated and saved as "
        "best/; 0: none",
        group=STEP,
        at_least=0,
    )

    valid_steps: int | None = option(
        None, "also validate every N optimizer steps", "eval_steps", group=VALIDATION, at_least=1
    )
    eval_batch_size: int = option(
        64,
        "validation examples per process and micro-batch",
        "per_device_eval_batch_size",
        group=VALIDATION,
        at_least=1,
    )
    metric_for_best_model: str = option(LOSS, "score by which best/ is chosen", group=VALIDATION)
    patience: int | None = option(
        None,
        "stop after N validations without improvement",
        "early_stopping_patience",
        group=VALIDATION,
        at_least=1,
    )

    lora_rank: int = option(
        0, "train an adapter of rank N instead of the full model (0: off)", group=LORA, at_least=0
    )
    lora_alpha: int | None = option(
        None, "scale of the adapter, multiplied by its rank (2 * rank)", group=LORA, at_least=1
    )
    lora_targets: list[str] = option(
        [ALL_LINEAR],
        f"modules to adapt; {ALL_LINEAR}: all linear layers except the head",
        group=LORA,
        nargs="+",
        metavar="NAME",
    )
    lora_dora: bool = option(
        False, "also train the magnitude of each row of the weights (DoRA)", group=LORA
    )
    base_dtype: str = option(
        "float32",
        f"dtype of the frozen weights: {' or '.join(BASE_DTYPES)}",
        group=LORA,
        choices=BASE_DTYPES,
        metavar="TYPE",
    )

    compile: bool = option(False, "compile the model", "torch_compile", group=SPEED)
    tf32: bool = option(False, "allow TF32 matrix products", group=SPEED)
    gradient_checkpointing: bool = option(
        False, "recompute activations in the backward pass to save memory", group=SPEED
    )
    attn_implementation: str | None = option(
        None, "attention backend: sdpa, eager, flex_attention, ...", group=SPEED
    )
    num_workers: int = option(
        0, "loader processes", "dataloader_num_workers", group=SPEED, at_least=0
    )

    report_to: list[str] = option(
        [],
        f"any of {', '.join(TRACKERS)}",
        group=REPORT,
        nargs="*",
        choices=TRACKERS,
        metavar="TRACKER",
    )
    logging_steps: int = option(10, "log every N optimizer steps", group=REPORT, at_least=1)
    push_to_hub: str | None = option(
        None, "repository to upload best/ to", "hub_model_id", group=REPORT
    )
    hub_strategy: str = option(
        "end",
        "what to upload; end: final best/; every_save: each new best/; checkpoint: also each last/",
        group=REPORT,
        choices=HUB_STRATEGIES,
        metavar="NAME",
    )

    data_options: dict[str, Any] = field(default_factory=dict)
    model_options: dict[str, Any] = field(default_factory=dict)
    score_options: dict[str, Any] = field(default_factory=dict)
    resumed: SavedRun | None = None

    @classmethod
    def from_command_line(
        cls, task: TaskOptions, argv: list[str], intact: str | None = None
    ) -> tuple["RunConfig", list[str]]:
        """Combine defaults, the arguments of a checkpoint, the YAML file and the command line.

        Args:
            intact: Path of a checkpoint whose checksums have already been verified.

        Returns:
            The configuration, with the path of an intact checkpoint as `restore_dir`; and lines to
            print about arguments that differ from the arguments of the resumed run.

        Raises:
            RunError: A value is out of range, `restore_dir` is not a checkpoint to resume from,
                or `outdir` contains another run.
        """
        parser = build_parser(task)
        argv = insert_yaml(parser, argv)
        defaults = vars(parser.parse_args([]))
        blank = argparse.Namespace(**dict.fromkeys(defaults, UNSET))
        given = vars(parser.parse_args(argv, blank))
        given = {name: value for name, value in given.items() if value is not UNSET}
        for values in (defaults, given):
            values.update({name: _expanded(values[name]) for name in PATHS if name in values})
        checkpoint, notes = _find_checkpoint({**defaults, **given}, intact)
        saved: dict[str, Any] = {}
        resumed = None
        if checkpoint is not None:
            resumed = SavedRun.read(checkpoint)
            saved = {name: v for name, v in resumed.args.items() if name in defaults}
            _check_fixed({**defaults, **saved}, given)
            if "outdir" not in given:
                saved["outdir"] = _outdir_of({**defaults, **given}["restore_dir"], defaults)
            notes += _changes(saved, given)
            if "epochs" in given and "max_steps" not in given and saved.get("max_steps"):
                notes.append(f"--max_steps {saved.pop('max_steps')} no longer applies")
        elif "train_input" in given and "valid_input" not in given:
            saved["valid_input"] = None
        values = {**defaults, **saved, **given}
        averages = OPTIMIZERS[values["optimizer"]].averages
        if averages and "lr_scheduler_type" not in {**saved, **given}:
            values["lr_scheduler_type"] = "constant_with_warmup"
        values["restore_dir"] = None if checkpoint is None else str(checkpoint)
        if values["lora_rank"] and values["lora_alpha"] is None:
            values["lora_alpha"] = 2 * values["lora_rank"]
        config = cls(resumed=resumed, **_by_field(values, task))
        config.validate()
        return config, notes

    @property
    def peak_lr(self) -> float:
        """`lr` after the model is built: its default depends on whether weights are pretrained."""
        assert self.lr is not None
        return self.lr

    @property
    def optimizer_options(self) -> OptimizerOptions:
        names = (spec.name for spec in fields(OptimizerOptions))
        return OptimizerOptions(**{name: getattr(self, name) for name in names})

    @property
    def valid_sources(self) -> dict[str, str | list[str]]:
        """Validation data by the name of the set; the name of held-out examples is ""."""
        if self.valid_input is None:
            return {"": self.train_input}
        return named_sources(self.valid_input)

    def validate(self) -> None:
        """Check each value against its rule.

        Raises:
            RunError: A value is out of range, or a tracker or repository is not available.
        """
        _check_ranges(vars(self))
        _ = self.valid_sources
        if (self.valid_fold + 0.5) * self.valid_size >= 1:
            raise RunError(
                f"--valid_fold {self.valid_fold}: expected less than 1 / --valid_size "
                f"{self.valid_size}, the number of parts"
            )
        self._check_lora()
        self._check_report()
        self._check_optimizer()
        if self.files_per_epoch is not None and self.max_steps is None:
            raise RunError(
                f"--files_per_epoch {self.files_per_epoch}: expected --max_steps, too, since the "
                "number of steps in an epoch is known only when its files have been read"
            )
        if self.files_per_epoch is not None and self.valid_input is None:
            raise RunError(f"--files_per_epoch {self.files_per_epoch}: expected --valid_input, too")
        if self.push_to_hub is None and self.hub_strategy != "end":
            raise RunError(f"--hub_strategy {self.hub_strategy}: expected --push_to_hub, too")

    def _check_report(self) -> None:
        # Imported here because both are slow to import: accelerate.tracking imports torch.
        if self.report_to:
            from accelerate.tracking import get_available_trackers

            if missing := sorted(set(self.report_to) - set(map(str, get_available_trackers()))):
                names = " ".join(missing)
                sentence = f"not installed; expected `pip install {names}`"
                raise RunError(f"--report_to {names}: {sentence}")
        if self.push_to_hub is not None:
            from huggingface_hub.utils import HFValidationError, validate_repo_id

            try:
                validate_repo_id(self.push_to_hub)
            except HFValidationError as error:
                raise RunError(f"--push_to_hub {self.push_to_hub}: {error}") from None

    def _check_lora(self) -> None:
        if self.resumed is None and (Path(self.model_id) / ADAPTER_FILE).is_file():
            raise RunError(
                f"--model_id {self.model_id}: a PEFT adapter; expected a full model (merge it by "
                f"`python export.py --checkpoint {self.model_id} --output FOLDER`)"
            )
        if self.lora_rank and self.push_to_hub is not None and Path(self.model_id).is_dir():
            raise RunError(
                f"--push_to_hub {self.push_to_hub}: the base model of the adapter, "
                f"{self.model_id}, is a local folder; expected a Hub id as --model_id"
            )
        if self.lora_rank:
            return require("peft", "lora", f"--lora_rank {self.lora_rank}")
        for spec in option_fields():
            value = getattr(self, spec.name)
            if spec.metadata["group"] == LORA and value != _default(spec):
                shown = " ".join(value) if isinstance(value, list) else value
                raise RunError(f"--{spec.name} {shown}: expected --lora_rank, too")

    def _check_optimizer(self) -> None:
        self.optimizer_options.check()
        if self.ema >= 1:
            raise RunError(f"--ema {self.ema}: expected less than 1")
        if self.optimizer == "sgd" and self.lr is None and self.resumed is None:
            raise RunError("--optimizer sgd: expected --lr, too; it is larger than for AdamW")
        if not OPTIMIZERS[self.optimizer].averages:
            return
        if self.ema:
            raise RunError(
                f"--ema {self.ema}: --optimizer {self.optimizer} averages the weights itself; "
                "expected one of the two"
            )
        if self.lr_scheduler_type not in CONSTANT:
            raise RunError(
                f"--lr_scheduler_type {self.lr_scheduler_type}: --optimizer {self.optimizer} "
                f"replaces the decay of the learning rate; expected {' or '.join(CONSTANT)}"
            )

    def to_args(self) -> dict[str, Any]:
        """Return all arguments by name, in the form in which a checkpoint saves them."""
        values = {spec.name: getattr(self, spec.name) for spec in option_fields()}
        del values["restore_dir"]
        return {**values, **self.data_options, **self.model_options, **self.score_options}


def option_fields() -> list[Any]:
    """Return the fields of `RunConfig` that are arguments."""
    return [spec for spec in fields(RunConfig) if spec.metadata]


def check_form(argv: list[str]) -> None:
    """Check names, types and ranges of arguments; print the help of `--help`.

    Raises:
        RunError: A value is out of range, or the YAML file cannot be read.
        SystemExit: After `--help`, or if argparse rejects an argument.
    """
    parser = build_parser(TaskOptions())
    _check_ranges(vars(parser.parse_args(insert_yaml(parser, argv))))


def _check_ranges(values: dict[str, Any]) -> None:
    for spec in option_fields():
        value = values[spec.name]
        least = spec.metadata["at_least"]
        is_number = isinstance(value, (int, float)) and least is not None
        if is_number and not (value >= least and math.isfinite(value)):
            raise RunError(f"--{spec.name} {value}: expected at least {least}")


def build_parser(task: TaskOptions) -> argparse.ArgumentParser:
    """Build the parser from the fields of `RunConfig` and the options of the task."""
    parser = argparse.ArgumentParser(
        usage="train.py [arguments]",
        formatter_class=HelpFormatter,
        epilog="Names of transformers.TrainingArguments, such as --output_dir, are accepted, too.",
    )
    groups = {name: parser.add_argument_group(name) for name in (DATA, RUN, STEP, VALIDATION)}
    groups |= {name: parser.add_argument_group(name) for name in (LORA, SPEED, REPORT)}
    for spec in option_fields():
        default = task.base_model if spec.name == "model_id" else _default(spec)
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
    return parser


def insert_yaml(parser: argparse.ArgumentParser, argv: list[str]) -> list[str]:
    """Insert the values of `--config` ahead of the command line, so that the latter overrides them.

    Raises:
        RunError: The file cannot be read, or a key is not an argument.
    """
    finder = argparse.ArgumentParser(add_help=False, allow_abbrev=False)
    finder.add_argument("--config")
    path = finder.parse_known_args(argv)[0].config
    if path is None:
        return argv
    try:
        values = yaml.safe_load(Path(path).expanduser().read_text(encoding="utf-8"))
    except (OSError, UnicodeDecodeError, yaml.YAMLError) as error:
        reason = " ".join(str(error).split())
        raise RunError(f"--config {path}: cannot be read ({reason})") from None
    if not isinstance(values, dict):
        raise RunError(f"--config {path}: expected lines of `name: value`")
    known = {text[2:]: action for action in parser._actions for text in action.option_strings}
    lines: list[str] = []
    for name, value in values.items():
        if name not in known or name in ("config", "help"):
            near = difflib.get_close_matches(str(name), known, n=1)
            hint = f"; did you mean {near[0]}?" if near else ""
            raise RunError(f"--config {path}: no argument {name}{hint}")
        lines += _as_arguments(path, name, value, is_flag=known[name].nargs == 0)
    return [*lines, *argv]


def _as_arguments(path: str, name: str, value: Any, is_flag: bool) -> list[str]:
    if is_flag:
        if not isinstance(value, bool):
            raise RunError(f"--config {path}: {name}: {value}; expected true or false")
        return [f"--{name}"] if value else []
    if isinstance(value, list):
        return [f"--{name}", *map(str, value)]
    return [] if value is None else [f"--{name}={value}"]


def _find_checkpoint(values: dict[str, Any], intact: str | None) -> tuple[Path | None, list[str]]:
    """Return the folder to resume from, and lines to print."""
    outdir = Path(values["outdir"])
    name = values["restore_dir"]
    is_new_here = name is None or is_remote(name)
    if is_new_here and any((outdir / result).exists() for result in RESULTS):
        raise RunError(
            f"{outdir}: already contains a run; resume it with --restore_dir {AUTO}, or choose "
            "another --outdir"
        )
    if name == AUTO:
        name = str(outdir / "last") if is_published(outdir / "last") else None
    if name is None:
        return None, []
    place = download_checkpoint(name) if is_remote(name) else Path(name)
    folder, fault = (place, None) if str(place) == intact else find_intact(place)
    if not (folder / OPTIMIZER_FILE).is_file():
        raise RunError(f"{folder}: has no optimizer state; expected a last/, not a best/")
    if fault is None:
        return folder, []
    return folder, [f"{name} is damaged ({fault}); resuming from the previous one, {folder}"]


def _outdir_of(place: str, defaults: dict[str, Any]) -> str:
    """Return the output directory of a run, given the path of its last/ or of the link's target.

    Raises:
        RunError: The folder has another name.
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
    """Return one line for each argument whose value in the resumed run differs."""
    ignored = ("restore_dir", "config", "outdir", "dry_run")
    return [
        f"--{name} is now {value}; it was {saved[name]}"
        for name, value in given.items()
        if name not in ignored and name in saved and saved[name] != value
    ]


def _check_fixed(saved: dict[str, Any], given: dict[str, Any]) -> None:
    """Check that the arguments of a resumed run match its adapter and its optimizer.

    Raises:
        RunError: An argument differs.
    """
    for name in FIXED:
        if name in given and given[name] != saved[name]:
            raise RunError(
                f"--{name} {given[name]}: the resumed run has {saved[name]}; expected the same "
                "value, or a new run"
            )


def _by_field(values: dict[str, Any], task: TaskOptions) -> dict[str, Any]:
    """Group values by the fields of `RunConfig`; options of the task go into three dicts."""
    result = {spec.name: values[spec.name] for spec in option_fields()}
    for kind in ("data_options", "model_options", "score_options"):
        result[kind] = {name: values[name] for name in getattr(task, kind)}
    return result


def _task_options(task: TaskOptions) -> dict[str, dict]:
    return {**task.data_options, **task.model_options, **task.score_options}


def _default(spec: Any) -> Any:
    return spec.default_factory() if spec.default is MISSING else spec.default


def _kind(spec: Any) -> dict[str, Any]:
    """Return the arguments of `add_argument` that follow from the type of a field."""
    types = get_args(spec.type) or (spec.type,)
    if spec.type is bool:
        return {"action": "store_true"}
    for kind in (int, float):
        if kind in types:
            return {"type": kind}
    return {}


def _expanded(value: Any) -> Any:
    """Expand `~` in a path, or in each of several."""
    if isinstance(value, list):
        return [_expanded(part) for part in value]
    if isinstance(value, str) and value.startswith("~"):
        return str(Path(value).expanduser())
    return value
