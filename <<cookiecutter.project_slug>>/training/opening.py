"""Open a run: read its data, build or load its model, and determine its first step."""

import math
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from accelerate import Accelerator
from accelerate.utils import DistributedType
from torch.optim import Optimizer
from torch.optim.lr_scheduler import LRScheduler

from errors import RunError
from model.adapter import hash_base
from model.interface import Scorer

from .adapter import add_adapter, check_form, moved_base, prepare_base
from .arguments import read_config
from .atomic import is_published, supports_links
from .averaging import WeightAverage
from .batches import Batches
from .checkpoint import Checkpointer
from .config import RunConfig
from .contract import ExampleSet, Task
from .data import TrainData
from .distributed import RankGroup
from .launch import start
from .loading import (
    build_config,
    build_model,
    commit_of,
    hash_model,
    load_model,
    load_tokenizer,
    set_up,
)
from .lock import lock_folder
from .losses import LOSS, LossMeter
from .memory import largest_batch_size
from .model_check import check_model, unused_parameters
from .optimization import (
    GradientGuard,
    build_scheduler,
    check_optimizer,
    check_scheduler,
    fast_forward,
)
from .optimizers import build_optimizer, describe_optimizer
from .randomness import seed_all
from .run import Run
from .set_names import named_scores
from .signals import StopSignals, ended_children
from .start_check import check_contract, check_inputs, check_prediction, check_scores
from .state import TrainState
from .strategy import Strategy
from .throughput import Throughput
from .user_code import user_code
from .validation import ValidationSet

SHARDED = (DistributedType.FSDP, DistributedType.DEEPSPEED)
PROBES = 4  # maximum number of examples that are run to find parameters without a gradient


@contextmanager
def open_run(task: Task, argv: list[str]) -> Iterator[Run]:
    """Build the parts of a run; the output directory is locked inside the `with` block.

    Raises:
        RunError, DataError: The run cannot start as requested. Raised before the first step.
    """
    config, notes, accelerator, group = _join(task, argv)
    with ended_children(), lock_folder(group, Path(config.outdir)):
        _check_unchanged(group, task, argv, config)
        run = _Opening(task, config, accelerator, group, notes).open()
        with run.signals, run.checkpoints:
            yield run
        run.train_data.remove_files()


def _build_strategy(accelerator: Accelerator, config: RunConfig) -> Strategy:
    """Return the strategy that was configured for the launch.

    Raises:
        RunError: An argument or a setting of Accelerate is not supported with FSDP2 or DeepSpeed.
    """
    if accelerator.distributed_type == DistributedType.FSDP:
        config.optimizer_options.check_sharding()
    if accelerator.distributed_type != DistributedType.DEEPSPEED:
        return Strategy(accelerator)
    for name in ("lora_rank", "ema"):
        if value := getattr(config, name):
            raise RunError(f"--{name} {value}: not supported with DeepSpeed; expected DDP or FSDP2")
    from .zero import ZeroStrategy  # imports DeepSpeed, which is optional

    return ZeroStrategy(accelerator, config.max_grad_norm)


def _join(task: Task, argv: list[str]) -> tuple[RunConfig, list[str], Accelerator, RankGroup]:
    """Read the configuration and join the other ranks.

    A rank with invalid arguments, for example one that cannot find the checkpoint, joins before it
    raises the error: otherwise the other ranks would wait for it.
    """
    try:
        config, notes = read_config(task, argv)
    except RunError:
        with RankGroup(start()).in_agreement():
            raise
    accelerator = start(f"{config.outdir}/trackers", config.report_to)
    group = RankGroup(accelerator)
    with group.in_agreement():
        return config, notes, accelerator, group


def _check_unchanged(group: RankGroup, task: Task, argv: list[str], config: RunConfig) -> None:
    """Check that the configuration is still the one that `_join` read, and is equal on all ranks.

    Call this while the output directory is locked. Before that, another run may have started or
    ended in the directory. On several machines, `--outdir` may refer to different directories, with
    different checkpoints.
    """
    with group.in_agreement():
        again, _ = read_config(task, argv, config.restore_dir)
        if again != config:
            raise RunError(f"{config.outdir}: changed while this run started; start it again")
    group.expect_equal({f"--{name}": value for name, value in config.to_args().items()})


class _Opening:
    """Builds a `Run` from a configuration; `open` calls the other methods in order."""

    def __init__(
        self,
        task: Task,
        config: RunConfig,
        accelerator: Accelerator,
        group: RankGroup,
        notes: list[str],
    ):
        self.task = task
        self.config = config
        self.accelerator = accelerator
        self.group = group
        self.notes = notes
        self.base_hash = None if config.resumed is None else config.resumed.base
        self.commit = None if config.resumed is None else config.resumed.commit

    def open(self) -> Run:
        """Build the parts of the run."""
        if self.group.is_main and not supports_links(Path(self.config.outdir)):
            self.notes.append(
                f"{self.config.outdir}: no symbolic links here; checkpoints are copied instead"
            )
        self.read_data()
        directions = self.directions()
        seed_all(self.config.seed)
        with self.group.in_agreement(), user_code("model/modeling.py: Model cannot be built"):
            model = self.build_model()
        self.group.expect_equal({"checksum of configuration and weights": hash_model(model)})
        with self.group.in_agreement():
            scores = self.build_scores(model)
            named = self.valid_examples if len(self.valid_examples) > 1 else {}
            own_scores = {name: self.build_scores(model) for name in named}
            self.check(model, scores, directions)
        state = self.open_state()
        optimizer = self.build_optimizer(model)
        strategy = _build_strategy(self.accelerator, self.config)
        may_leave_unused = bool(self.unused_parameters(model)) or self.task.leaves_unused
        model, optimizer = strategy.prepare(model, optimizer, may_leave_unused)
        average = WeightAverage(model, optimizer, self.config.ema, state.scheduler_steps)
        average.check_save(self.accelerator.unwrap_model(model).save_pretrained)
        checkpoints = Checkpointer(
            self.group,
            strategy,
            average,
            self.tokenizer,
            outdir=Path(self.config.outdir),
            about=self.about,
        )
        if self.config.restore_dir is not None:
            checkpoints.load(Path(self.config.restore_dir), model, optimizer, state)
        scheduler = self.build_scheduler(optimizer, state)
        if strategy.can_probe_memory:
            self.fit_batch_size(model, state)
        return Run(
            task=self.task,
            config=self.config,
            accelerator=self.accelerator,
            group=self.group,
            strategy=strategy,
            model=model,
            optimizer=optimizer,
            scheduler=scheduler,
            guard=GradientGuard(self.accelerator, model, optimizer, self.config.max_grad_norm),
            average=average,
            tokenizer=self.tokenizer,
            train_data=self.train_data,
            valid_sets=self.valid_sets(scores, own_scores),
            scores=scores,
            state=state,
            losses=LossMeter(self.accelerator, {LOSS: state.train_loss, **state.named_losses}),
            throughput=Throughput(self.accelerator, model, self.config.tf32),
            signals=StopSignals(self.group),
            checkpoints=checkpoints,
            commit=self.commit,
            notes=self.notes,
        )

    def read_data(self) -> None:
        """Read tokenizer, training data and validation data; compare the data between the ranks."""
        config = self.config
        with self.group.in_agreement():
            self.tokenizer = None
            if self.task.needs_tokenizer:
                self.tokenizer = load_tokenizer(config.restore_dir or config.model_id)
        self.train_data = TrainData(config, self.accelerator, self.group, self._read)
        schema = self.train_data.examples.schema
        with self.group.in_agreement(), self.group.local_main_first():
            self.valid_examples = {
                name: self.train_data.held_out or self._read(source, schema)
                for name, source in config.valid_sources.items()
            }
        for name, examples in self.valid_examples.items():
            if examples.num_items.sum() == 0:  # the mean loss would be 0: always the best
                label = f"--valid_input {name}".strip()
                if config.valid_input is None:
                    label = "the examples held out from --train_input"
                raise RunError(
                    f"{label}: no target items with a positive weight; expected at least one"
                )
        if config.valid_input is None:
            self.notes.append(
                f"no --valid_input: {len(self.valid_examples['']):,} examples of --train_input are "
                f"held out (--valid_size {config.valid_size})"
            )
        hashes = {"content hash of --train_input": self.train_data.examples.fingerprint}
        for name, examples in self.valid_examples.items():
            hashes[f"content hash of --valid_input {name}".strip()] = examples.fingerprint
        self.group.expect_equal(hashes)

    def _read(self, source: str | list[str], schema: dict[str, Any]) -> ExampleSet:
        """Read files with a schema. Arguments of the command line override those in the schema."""
        options = {**schema, **self.config.data_options}
        saved = f" with the settings in {self.config.restore_dir}" if self.config.resumed else ""
        with user_code(f"model/dataset.py: generate_dataset cannot read {source}{saved}"):
            examples = self.task.read(source, self.tokenizer, self.config.max_len, **options)
        self.notes += [note for note in examples.notes if note not in self.notes]
        return examples

    def directions(self) -> dict[str, bool]:
        """Return for each score whether larger values are better.

        Raises:
            RunError: `Scores.directions` fails, or `--metric_for_best_model` is not one of the
                scores.
        """
        schema = self.train_data.examples.schema
        with user_code("model/metrics.py: Scores.directions fails"):
            directions = self.task.directions(schema, self.config.score_options)
        known = dict(directions)
        for name in self.valid_examples:
            known |= named_scores(name, directions)
        if (metric := self.config.metric_for_best_model) not in known:
            raise RunError(
                f"--metric_for_best_model {metric}: no such score; expected one of "
                f"{', '.join(known)}"
            )
        self.greater_is_better = known[metric]
        return directions

    def build_model(self) -> Any:
        """Build a new model, or load the model of the checkpoint."""
        config = self.config
        if config.restore_dir is None:
            arguments = {**self.train_data.examples.schema, **config.model_options}
            made = build_config(self.task, config.model_id, arguments, self.tokenizer)
            self.commit = commit_of(config.model_id)
            if config.lora_rank:
                prepare_base(made, config)
            model, notes = build_model(self.task.model_class, made, config.model_id)
            self.notes += notes
            if config.lora_rank:
                add_adapter(model, config, self.commit)
                if self.group.is_main:  # only the main rank saves the hash
                    self.base_hash = hash_base(model.base_model)
            if config.lr is None:
                self.config = replace(config, lr=self._default_lr(made))
        else:
            options = config.model_options
            place = moved_base(config)
            # The ranks of a machine read the same files, so only one of them hashes the base model.
            compares_base = self.group.is_local_main
            model = load_model(
                self.task.model_class, config.restore_dir, options, place, compares_base
            )
        set_up(model, self.config)
        return model

    def _default_lr(self, model_config: Any) -> float:
        if self.config.lora_rank:
            return 2e-4
        return 5e-5 if getattr(model_config, "base_has_weights", False) else 2e-3

    def build_scores(self, model: Any) -> Scorer:
        device = self.accelerator.device
        with user_code("model/metrics.py: Scores cannot be built"):
            options = self.config.score_options
            return self.task.build_scores(model, self.tokenizer, device, options)

    def check(self, model: Any, scores: Scorer, directions: dict[str, bool]) -> None:
        """Try the model, `save_pretrained`, the scores and Predictor on a few examples."""
        examples = self.train_data.examples
        check_inputs(model, examples)
        self.notes += check_model(model, self.tokenizer, examples, self.config.max_len)
        if self.config.lora_rank:
            check_form(model, self.notes[-1], self.config)
        is_main = self.group.is_main
        self.notes += check_contract(self.task, model, examples, is_main)
        device = self.accelerator.device
        if device.type != "cpu" and self.accelerator.distributed_type in SHARDED:
            return  # the full model may not fit on the device
        model.to(device)  # the scores are computed on this device
        validation = next(iter(self.valid_examples.values()))  # one set is enough for a check
        check_scores(self.task, model, validation, scores, directions, is_main)
        source = next(iter(self.config.valid_sources.values()))
        self.notes += check_prediction(
            self.task, model, self.tokenizer, self.config.max_len, examples.schema, source
        )

    def unused_parameters(self, model: Any) -> list[str]:
        """Run a few short examples, one at a time, to find parameters without a gradient.

        Returns:
            The names of the parameters that get no gradient in at least one of these runs.
        """
        examples = self.train_data.examples
        short = examples.lengths.argsort(kind="stable")[: 1 + len(examples) // 2]
        # For some examples, the model may skip some of its parts, possibly at random. This matters
        # only for DDP.
        count = PROBES if self.group.size > 1 else 1
        chosen = short[:: max(1, len(short) // count)][:count]
        found: dict[str, None] = {}
        for seed, example in enumerate(chosen.tolist()):
            batch = examples.batch([example])
            found |= dict.fromkeys(unused_parameters(model, batch, seed))
        unused = list(found)
        if unused:
            names = ", ".join(unused[:4]) + (", ..." if len(unused) > 4 else "")
            self.notes.append(
                f"{len(unused)} parameters get no gradient from some examples: {names}"
            )
        return unused

    def open_state(self) -> TrainState:
        """Create the state of a new run, or read the state in the checkpoint.

        A resumed run keeps its global batch size, for any number of ranks.

        Raises:
            RunError: The run resumes inside an epoch whose data or order have changed.
        """
        config = self.config
        resumed = config.resumed
        num_ranks = self.group.size
        size = config.batch_size * config.accumulation * num_ranks
        if resumed is None:
            state = TrainState(size)
        else:
            state = resumed.state_of(self.group.rank, num_ranks)
            self._compare_with(resumed.data, resumed.args, state)
            if size != state.global_batch_size:
                self.notes.append(
                    f"the global batch size stays {state.global_batch_size}, as when the run "
                    "started"
                )
        state.greater_is_better = self.greater_is_better
        state.total_steps = config.max_steps or self._steps_of_epochs(state)
        return state

    def _steps_of_epochs(self, state: TrainState) -> int:
        """Return the sum of the numbers of completed and remaining steps.

        This assumes that each later epoch has as many examples as the current epoch.
        """
        per_epoch = math.ceil(len(self.train_data.examples) / state.global_batch_size)
        done = math.ceil(state.examples / state.global_batch_size)
        left = (self.config.epochs - state.current_epoch) * per_epoch - done
        return state.step + max(0, left)

    def _compare_with(self, data: dict, args: dict, state: TrainState) -> None:
        """Compare the data of a resumed run with those of its checkpoint.

        If the validation data changed, or best/ is missing, forget the best score.

        Raises:
            RunError: The training data or their order changed inside an epoch.
        """
        config = self.config
        now = self.about()["data"]
        same_train = all(now[key] == data[key] for key in ("examples", "train") if key in data)
        if state.examples and not same_train:
            raise RunError(
                f"{config.train_input}: the data changed during epoch {state.current_epoch} "
                f"({data['examples']} examples before, {now['examples']} now, with other content); "
                "expected the same data until the epoch ends"
            )
        if state.examples and args.get("seed", config.seed) != config.seed:
            raise RunError(
                f"--seed {config.seed}: the order of epoch {state.current_epoch} depends on the "
                f"seed; expected {args['seed']} until the epoch ends"
            )
        reason = ""
        changed = self._changed_sets(data.get("valid", now["valid"]), now["valid"])
        if state.best and changed:
            words = ["the validation data", ", ".join(filter(None, changed)), "changed"]
            reason = " ".join(filter(None, words))
        elif state.best and not is_published(Path(config.outdir) / "best"):
            reason = f"{config.outdir}/best does not exist"
        if reason:
            state.forget_best()
            self.notes.append(f"{reason}: the next validation counts as the best so far")

    def _changed_sets(self, before: dict[str, int], now: dict[str, int]) -> list[str]:
        """Return the names of the changed validation sets that affect `--metric_for_best_model`."""
        name = self.config.metric_for_best_model.rpartition("/")[0]
        names = {name} if name and name in now else now.keys() | before.keys()
        return [name for name in sorted(names) if before.get(name) != now.get(name)]

    def about(self) -> dict[str, Any]:
        """Return the fields of `SavedRun` other than the state and the losses."""
        examples = self.train_data.examples
        data = {
            "examples": len(examples),
            "train": examples.fingerprint,
            "valid": {n: examples.fingerprint for n, examples in self.valid_examples.items()},
        }
        return {
            "args": self.config.to_args(),
            "schema": examples.schema,
            "data": data,
            "base": self.base_hash,
            "commit": self.commit,
        }

    def build_optimizer(self, model: Any) -> Optimizer:
        """Call `build_optimizer` of model/optimization.py; if there is none, use `--optimizer`.

        Raises:
            RunError: No parameter requires a gradient; an argument does not apply to the optimizer
                or to the model; the installed torch does not have the optimizer; or
                `build_optimizer` of model/optimization.py fails or returns an invalid optimizer.
        """
        lr = self.config.peak_lr
        weight_decay = self.config.weight_decay
        options = self.config.optimizer_options
        if self.task.build_optimizer is None:
            optimizer = build_optimizer(model, lr, weight_decay, options)
            self.notes += describe_optimizer(optimizer, model)
            return optimizer
        for name, value in options.changed().items():
            raise RunError(
                f"--{name} {value}: model/optimization.py has a build_optimizer; expected only one "
                "of the two"
            )
        with user_code("model/optimization.py: build_optimizer fails"):
            optimizer = self.task.build_optimizer(model, lr, weight_decay)
        check_optimizer(optimizer, model)
        if self.config.ema and hasattr(optimizer, "eval"):
            raise RunError(
                f"--ema {self.config.ema}: {type(optimizer).__name__} averages the weights itself; "
                "expected only one of the two"
            )
        return optimizer

    def build_scheduler(self, optimizer: Optimizer, state: TrainState) -> LRScheduler:
        warmup = self.config.num_warmup_steps
        name = self.config.lr_scheduler_type
        if self.task.build_scheduler is not None:
            if name != "linear":
                self.notes.append(
                    f"--lr_scheduler_type {name} is not used: model/optimization.py has a "
                    "build_scheduler"
                )
            with user_code("model/optimization.py: build_scheduler fails"):
                scheduler = self.task.build_scheduler(optimizer, warmup, state.total_steps)
            check_scheduler(scheduler)
        else:
            scheduler = build_scheduler(optimizer, name, warmup, state.total_steps)
        fast_forward(scheduler, optimizer, state.scheduler_steps)
        return scheduler

    def fit_batch_size(self, model: torch.nn.Module, state: TrainState) -> None:
        asked = self.config.batch_size
        size = largest_batch_size(
            self.task, self.accelerator, self.group, model, self.train_data.examples, asked
        )
        if size < asked:
            self.config = replace(self.config, batch_size=size)
            self.notes.append(
                f"out of memory with --batch_size {asked}: micro-batches have at most {size} "
                f"examples per process; the global batch size stays {state.global_batch_size}"
            )

    def valid_sets(self, scores: Scorer, own_scores: dict[str, Scorer]) -> list[ValidationSet]:
        """Build the validation sets; if there are several, each also has its own scores."""
        size = self.config.eval_batch_size
        workers = self.config.num_workers
        sets = []
        for name, examples in self.valid_examples.items():
            batches = Batches(examples, self.accelerator, size, num_workers=workers)
            scorers = [scores, own_scores[name]] if name in own_scores else [scores]
            sets.append(ValidationSet(name, batches, scorers))
        return sets
