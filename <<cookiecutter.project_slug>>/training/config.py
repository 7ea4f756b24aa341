"""The configuration of a run: its fields, and the rules for their values.

This module does not import torch, so that `--help` and errors in arguments are printed quickly.
"""

import math
from dataclasses import MISSING, dataclass, field, fields
from pathlib import Path
from typing import Any

from errors import RunError

from .help import OneOrMore
from .optimizer_options import OPTIMIZERS, OptimizerOptions
from .packages import require
from .set_names import named_sources
from .state import SavedRun

LOSS = "loss"  # name of the loss among the scores
BASE_DTYPES = ("float32", "bfloat16")
HUB_STRATEGIES = ("end", "every_save", "checkpoint")  # as in transformers
CONSTANT = ("constant", "constant_with_warmup")
TRACKERS = (  # supported by accelerate
    *("aim", "clearml", "comet_ml", "dvclive", "mlflow", "swanlab"),
    *("tensorboard", "trackio", "wandb"),
)
SCHEDULERS = (  # all schedules of transformers that do not depend on a metric
    *("constant", "constant_with_warmup", "cosine", "cosine_warmup_with_min_lr"),
    *("cosine_with_min_lr", "cosine_with_restarts", "inverse_sqrt", "linear"),
    *("polynomial", "warmup_stable_decay"),
)
ALL_LINEAR = "all-linear"  # PEFT's name for all linear layers except the head
ADAPTER_FILE = "adapter_config.json"  # PEFT's name for the configuration file of an adapter
PATHS = ("train_input", "valid_input", "model_id", "outdir", "restore_dir", "config")


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
        text: Description of the argument in `--help`.
        aliases: Alternative names of the argument on the command line, as in transformers.
        group: Group of the argument in `--help`.
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
    """Arguments of train.py; in a resumed run, combined with the saved ones (see `read_config`).

    Attributes:
        data_options, model_options, score_options: Values of the arguments that `OPTIONS` of
            dataset.py, configuration.py and metrics.py in `model/` declare, by name.
        resumed: Saved state of the run to resume; None for a new run.
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
        "fraction of --train_input held out if --train_input is given without --valid_input",
        group=DATA,
        at_least=0,
    )
    valid_fold: int = option(
        0, "index of the part to hold out, among 1 / VALID_SIZE parts", group=DATA, at_least=0
    )
    model_id: str = option("tiny", "base model: Hub id, NAME@REVISION, or folder", group=DATA)
    max_len: int = option(
        128, "maximum sequence length in tokens", "max_length", group=DATA, at_least=2
    )

    config: str | None = option(
        None, "YAML file of arguments; the command line takes precedence", group=RUN
    )
    dry_run: bool = option(
        False, "print data, schedule, memory and disk space, then exit", group=RUN
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
        None, "train on at most N of the input files per epoch", group=RUN, at_least=1
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
        "maximum number of examples per process and micro-batch",
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
        0, "number of warm-up steps", "warmup_steps", group=STEP, at_least=0
    )
    weight_decay: float = option(
        0.01, "weight decay of parameters with two or more dimensions", group=STEP, at_least=0
    )
    max_grad_norm: float = option(
        1.0, "maximum norm of the gradient; 0 for no clipping", group=STEP, at_least=0
    )

    optimizer: str = option(
        "adamw",
        "adamw; muon or adamw_8bit (for the matrices of hidden layers; all other parameters are "
        "trained by AdamW with the same --lr); schedule_free (averages the weights instead of "
        "decaying the learning rate); sgd (requires --lr)",
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
        None, "term in the denominator of AdamW (1e-8)", "adam_epsilon", group=STEP, at_least=0
    )
    momentum: float | None = option(
        None, "momentum of muon (0.95) or sgd (0.9)", group=STEP, at_least=0
    )
    layer_decay: float = option(
        1.0,
        "learning rate of each layer, as a multiple of that of the layer above",
        group=STEP,
        at_least=0,
    )
    head_lr_factor: float = option(
        1.0, "factor that multiplies the learning rate of the head", group=STEP, at_least=0
    )
    ema: float = option(
        0.0,
        "decay of an exponential moving average of the weights, which is validated and saved as "
        "best/; 0: off",
        group=STEP,
        at_least=0,
    )

    valid_steps: int | None = option(
        None, "also validate every N optimizer steps", "eval_steps", group=VALIDATION, at_least=1
    )
    eval_batch_size: int = option(
        64,
        "maximum number of validation examples per process and micro-batch",
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
        0, "train an adapter of rank N instead of the full model; 0: off", group=LORA, at_least=0
    )
    lora_alpha: int | None = option(
        None,
        "scale the adapter by LORA_ALPHA / LORA_RANK; without this argument, by 2",
        group=LORA,
        at_least=1,
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

    compile: bool = option(
        False, "compile the model with torch.compile", "torch_compile", group=SPEED
    )
    tf32: bool = option(False, "allow TF32 in float32 matrix products", group=SPEED)
    gradient_checkpointing: bool = option(
        False, "recompute activations in the backward pass to save memory", group=SPEED
    )
    attn_implementation: str | None = option(
        None, "attention backend: sdpa, eager, flex_attention, ...", group=SPEED
    )
    num_workers: int = option(
        0, "number of loader processes", "dataloader_num_workers", group=SPEED, at_least=0
    )

    report_to: list[str] = option(
        [],
        f"trackers: any of {', '.join(TRACKERS)}",
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
        "what to upload; end: the final best/; every_save: also new best/ during the run; "
        "checkpoint: also new last/",
        group=REPORT,
        choices=HUB_STRATEGIES,
        metavar="NAME",
    )

    data_options: dict[str, Any] = field(default_factory=dict)
    model_options: dict[str, Any] = field(default_factory=dict)
    score_options: dict[str, Any] = field(default_factory=dict)
    resumed: SavedRun | None = None

    @property
    def peak_lr(self) -> float:
        """`lr`, which is set when the model is built: the default depends on the base model."""
        assert self.lr is not None
        return self.lr

    @property
    def optimizer_options(self) -> OptimizerOptions:
        names = (spec.name for spec in fields(OptimizerOptions))
        return OptimizerOptions(**{name: getattr(self, name) for name in names})

    @property
    def valid_sources(self) -> dict[str, str | list[str]]:
        """Files of each validation set, by the name of the set; "" for a set without a name.

        If `valid_input` is None, these are the training files, from which examples are held out.
        """
        if self.valid_input is None:
            return {"": self.train_input}
        return named_sources(self.valid_input)

    def validate(self) -> None:
        """Check each value against its rule.

        Raises:
            RunError: A value is invalid, an argument requires or excludes another one, or a package
                is missing.
        """
        check_ranges(vars(self))
        _ = self.valid_sources
        if (self.valid_fold + 0.5) * self.valid_size >= 1:
            raise RunError(
                f"--valid_fold {self.valid_fold}: expected less than 1 / --valid_size "
                f"{self.valid_size} (rounded), the number of parts"
            )
        self._check_lora()
        self._check_report()
        self._check_optimizer()
        if self.lr_scheduler_type == "constant" and self.num_warmup_steps:
            raise RunError(
                f"--num_warmup_steps {self.num_warmup_steps}: --lr_scheduler_type constant has no "
                "warm-up; expected constant_with_warmup"
            )
        if self.files_per_epoch is not None and self.max_steps is None:
            raise RunError(
                f"--files_per_epoch {self.files_per_epoch}: expected --max_steps, too, since the "
                "number of steps in an epoch is only known when the files have been read"
            )
        if self.files_per_epoch is not None and self.valid_input is None:
            raise RunError(f"--files_per_epoch {self.files_per_epoch}: expected --valid_input, too")
        if self.push_to_hub is None and self.hub_strategy != "end":
            raise RunError(f"--hub_strategy {self.hub_strategy}: expected --push_to_hub, too")

    def _check_report(self) -> None:
        # Both imports are slow (accelerate.tracking imports torch), so they are not at the top.
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
                f"--model_id {self.model_id}: a PEFT adapter; expected a full model (merge it with "
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
            if spec.metadata["group"] == LORA and value != default_of(spec):
                shown = " ".join(value) if isinstance(value, list) else value
                raise RunError(f"--{spec.name} {shown}: expected --lora_rank, too")

    def _check_optimizer(self) -> None:
        self.optimizer_options.check()
        if self.ema >= 1:
            raise RunError(f"--ema {self.ema}: expected less than 1")
        if self.optimizer == "sgd" and self.lr is None and self.resumed is None:
            raise RunError("--optimizer sgd: expected --lr, too (usually larger than for AdamW)")
        if not OPTIMIZERS[self.optimizer].averages:
            return
        if self.ema:
            raise RunError(
                f"--ema {self.ema}: --optimizer {self.optimizer} averages the weights itself; "
                "expected only one of the two"
            )
        if self.lr_scheduler_type not in CONSTANT:
            raise RunError(
                f"--lr_scheduler_type {self.lr_scheduler_type}: --optimizer {self.optimizer} "
                f"replaces the decay of the learning rate; expected {' or '.join(CONSTANT)}"
            )

    def to_args(self) -> dict[str, Any]:
        """Return all arguments except `restore_dir`, by name, as a checkpoint saves them."""
        values = {spec.name: getattr(self, spec.name) for spec in option_fields()}
        del values["restore_dir"]
        return {**values, **self.data_options, **self.model_options, **self.score_options}


def option_fields() -> list[Any]:
    """Return the fields of `RunConfig` that are arguments."""
    return [spec for spec in fields(RunConfig) if spec.metadata]


def check_ranges(values: dict[str, Any]) -> None:
    for spec in option_fields():
        value = values[spec.name]
        least = spec.metadata["at_least"]
        is_number = isinstance(value, (int, float)) and least is not None
        if is_number and not (value >= least and math.isfinite(value)):
            finite = "" if math.isfinite(value) else "a finite number of "
            raise RunError(f"--{spec.name} {value}: expected {finite}at least {least}")


def default_of(spec: Any) -> Any:
    return spec.default_factory() if spec.default is MISSING else spec.default
