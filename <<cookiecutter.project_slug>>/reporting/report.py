"""Report a run in progress: terminal, trackers and pictures."""

import copy
import sys
import tempfile
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path

from tqdm import tqdm

from errors import RunError, describe
from training.atomic import write_file
from training.config import LOSS
from training.contract import scores_table
from training.flops import full_size
from training.run import Run
from training.state import TrainState

from .card import write_card
from .curves import draw_curves
from .hub import Uploads

SECONDS_BETWEEN_FILES = 10.0  # minimum, since drawing takes longer than a short validation
Table = dict[str, dict[str, float]]  # scores by row and column: see `Scorer.table`
# Arguments (init_kwargs) with which a tracker resumes its run by id.
RESUME: dict[str, Callable[[str], dict]] = {
    "wandb": lambda run_id: {"id": run_id, "resume": "allow"},
    "trackio": lambda run_id: {"name": run_id, "resume": "allow"},
    "swanlab": lambda run_id: {"id": run_id, "resume": "allow"},
}


class Report:
    """Reports a run on the main rank. Every rank has to call the same methods.

    Raises:
        RunError: A tracker cannot start.
    """

    def __init__(self, run: Run):
        self.run = run
        self.state = run.state
        self.config = run.config
        self.outdir = Path(run.config.outdir)
        self.print = run.accelerator.on_main_process(print)  # once, not once per machine
        self._failed: set[str] = set()
        # An earlier process of a resumed run may have ended before it drew the latest curves.
        self._has_new_curves = bool(self.state.log)
        self._has_new_scores = False
        self._last_written = time.monotonic()
        self.uploads: Uploads | None = None
        if (repository := run.config.push_to_hub) is not None:
            self.uploads = Uploads(run.config, repository, tqdm.write)
            run.checkpoints.on_published = self.uploads.add
        if run.config.report_to and not run.config.dry_run:
            self._start_trackers()

    def start(self) -> None:
        """Print model, data, number of steps and notes; check that a model card can be written."""
        state = self.state
        steps = f"{state.step:,} of " if state.step else ""
        parameters = sum(full_size(p) for p in self.run.model.parameters())
        bare = self.run.accelerator.unwrap_model(self.run.model)
        is_based = hasattr(getattr(bare, "config", None), "base_model_id")
        base = f" from {self.config.model_id}" if is_based else ""
        trained = ""
        if self.config.lora_rank:
            own = sum(full_size(p) for p in self.run.model.parameters() if p.requires_grad)
            trained = f", {own:,} of them trained"
        self.print(
            f"{parameters:,} parameters{base}{trained}; "
            f"{len(self.run.train_data.examples):,} examples, "
            f"global batch size {state.global_batch_size}; {steps}{state.total_steps:,} steps",
            *self.run.notes,
            sep="\n",
        )
        if self.run.group.is_main:
            with tempfile.TemporaryDirectory() as folder:
                self._attempt("README.md", lambda: self._write_card(Path(folder), state, {}))

    def progress_bar(self, phase: str, total: int, initial: int = 0) -> tqdm:
        """Return a progress bar.

        It looks like `[Epoch 0] [TRAIN]:  12%|█▏        | 520/4387 [02:31<20:56,  3.08it/s]`.
        """
        return tqdm(
            total=total,
            initial=initial,
            desc=f"[Epoch {self.state.current_epoch}] [{phase}]",
            disable=not self.run.group.is_main,
            dynamic_ncols=True,
        )

    def after_step(self, bar: tqdm, lr: float) -> None:
        """Update the bar; every `--logging_steps` steps, add and log a point of the curves."""
        state = self.state
        losses = self.run.losses.latest
        if not bar.disable:
            seconds = (time.time() - bar.start_t) / (bar.n + 1 - bar.initial)  # per step
            left = bar.format_interval((state.total_steps - state.step) * seconds)
            bar.set_postfix({**losses, "lr": lr, "left": left}, refresh=False)
            bar.update()
        if state.step % self.config.logging_steps == 0 and losses:
            norm = self.run.losses.latest_norm
            state.add_curve_point(losses[LOSS], lr, norm)
            values = {f"train/{name}": loss for name, loss in losses.items()}
            values |= {"train/lr": lr, "train/grad_norm": norm, "train/epoch": state.current_epoch}
            if self.config.report_to:  # only then, since `since_log` synchronizes the ranks
                speed = self.run.throughput.since_log(self.run.group)
                values |= {f"speed/{name}": value for name, value in speed.items()}
            self._log(values)

    def after_sets(self, log: dict[str, float], count: int) -> None:
        """If there are several validation sets, print the losses and scores over all of them.

        With a single set, the progress bar of the set has already shown them.
        """
        if count > 1 and self.run.group.is_main:
            scores = (f"{name}={log[name]:.3g}" for name in log if "/" not in name)
            line = f"[Epoch {self.state.current_epoch}] [VALID]: {', '.join(scores)}"
            tqdm.write(line, file=sys.stderr)

    def after_validation(self) -> None:
        """Log losses and scores to the trackers; write loss.png and the files of `Scores.save`.

        Write the files at most every `SECONDS_BETWEEN_FILES` seconds, counted from the creation of
        this object. Files that are not written now are written by a later call or by `finish`.
        """
        log = list(self.state.log.values())[-1]["valid_log"]
        values = {f"valid/{name}": value for name, value in log.items()}
        self._log(values)
        self._has_new_curves = self._has_new_scores = True
        if time.monotonic() - self._last_written >= SECONDS_BETWEEN_FILES:
            self._write_files()

    def _write_files(self) -> None:
        if self.run.group.is_main and self._has_new_curves:
            self._attempt("loss.png", lambda: write_file(self.outdir / "loss.png", self._draw()))
        if self.run.group.is_main and self._has_new_scores:
            self._attempt("files of Scores.save", lambda: self.run.scores.save(self.outdir))
        self._has_new_curves = self._has_new_scores = False
        self._last_written = time.monotonic()

    def describe(self) -> Callable[[Path], None]:
        """Return a function that writes the model card into `best/`.

        With `--push_to_hub`, it also writes loss.png, which the model card then shows. It uses a
        copy of the state, since training continues while `best/` is written.
        """
        state = copy.deepcopy(self.state)
        picture: list[bytes] = []
        table: Table = {}
        if self.run.group.is_main:
            if self.uploads is not None:
                self._attempt("loss.png", lambda: picture.append(self._draw()))
            self._attempt("README.md", lambda: table.update(scores_table(self.run.scores)))

        def write(folder: Path) -> None:
            for content in picture:
                self._attempt("loss.png", partial(write_file, folder / "loss.png", content))
            self._attempt("README.md", lambda: self._write_card(folder, state, table))

        return write

    def finish(self) -> None:
        """Wait for the latest save, print the best scores and the paths, and complete the uploads.

        Also write the files that `after_validation` has not written.

        Raises:
            RunError: The latest save or the upload failed.
        """
        self.run.checkpoints.join()
        self._write_files()
        self._attempt("trackers", self.run.accelerator.end_training)
        state = self.state
        outdir = self.outdir
        metric = self.config.metric_for_best_model
        if state.is_stuck(self.config.patience) and state.step < state.total_steps:
            patience = self.config.patience
            self.print(f"Early stopping: no better {metric} in {patience} validations")
        if metric not in state.best:
            self.print(f"No best/ was saved: no validation in this process had a finite {metric}")
            return
        scores = state.best_scores
        reached = ", ".join(f"{name} {value:.4g}" for name, value in scores.items())
        seconds = sum(entry["seconds"] for entry in state.log.values())
        self.print(
            f"{state.step:,} steps in {tqdm.format_interval(seconds)}",
            f"Best: {state.best['epoch']}, {reached}",
            f"  {outdir}/best       the model; python predict.py --checkpoint {outdir}/best",
            f"  {outdir}/last       resume with --restore_dir",
            f"  {outdir}/loss.png   curves; see also {outdir}/log.json",
            sep="\n",
        )
        if self.uploads is not None:
            self.run.group.on_main(self.uploads.finish)
            self.print(f"Uploaded to {self.uploads.repository}")

    def _start_trackers(self) -> None:
        state = self.state
        settings = {name: arguments(state.run_id) for name, arguments in RESUME.items()}
        if state.step > 0:  # the steps after the save are logged again
            settings["tensorboard"] = {"purge_step": state.step + 1}
        args = self.config.to_args()
        simple = {name: v for name, v in args.items() if isinstance(v, (bool, int, float, str))}
        config = None if state.step > 0 else simple

        def init() -> None:
            try:
                self.run.accelerator.init_trackers(Path.cwd().name, config, init_kwargs=settings)
            except Exception as error:  # trackers raise their own exception types
                reason = (str(error).strip().splitlines() or [type(error).__name__])[0]
                names = " ".join(self.config.report_to)
                raise RunError(f"--report_to {names}: cannot start ({reason})") from None

        with self.run.group.in_agreement():
            init()

    def _write_card(self, folder: Path, state: TrainState, table: Table) -> None:
        model = self.run.accelerator.unwrap_model(self.run.model)
        args = self.config.to_args()
        if self.run.commit is not None:
            args["commit of model_id"] = self.run.commit
        write_card(folder, state, args, model, table)

    def _log(self, values: dict[str, float]) -> None:
        self._attempt("trackers", lambda: self.run.accelerator.log(values, step=self.state.step))

    def _draw(self) -> bytes:
        # Called only in the main thread, since matplotlib is not thread-safe.
        return draw_curves(self.state, self.config.metric_for_best_model)

    def _attempt(self, what: str, action: Callable[[], None]) -> None:
        """Run an action. If it fails, print the first error for each `what`, and continue."""
        try:
            action()
        except Exception as error:
            if what not in self._failed:
                tqdm.write(f"{what}: not written ({describe(error)})")
            self._failed.add(what)
