"""What a run tells while it goes on, to the terminal, to trackers, and in pictures."""

import time
from pathlib import Path

from accelerate import Accelerator
from tqdm import tqdm

from training.files import saving, write_file
from training.losses import LossSum
from training.peers import Peers
from training.state import TrainingState

from .card import write_card
from .curves import draw_curves
from .hub import push

# The trackers that find their run again by an id of ours, and the arguments that say so.
TAKE_UP = {
    "wandb": lambda run: {"id": run, "resume": "allow"},
    "trackio": lambda run: {"name": run, "resume": "allow"},
    "swanlab": lambda run: {"id": run, "resume": "allow"},
}


class Report:
    """All processes call the same methods; the main one tells.

    Args:
        scores: Of the validation, with `save(folder)`: see `model/metrics.py`.
        pipeline_tag: What the Hub calls the task.
    """

    def __init__(
        self,
        accelerator: Accelerator,
        peers: Peers,
        state: TrainingState,
        scores,
        pipeline_tag: str | None,
    ):
        self.accelerator, self.peers, self.state, self.scores = accelerator, peers, state, scores
        self.print = accelerator.on_main_process(print)  # accelerator.print does on each machine
        self.pipeline_tag = pipeline_tag
        self.outdir = Path(state.args["outdir"])
        self._curves: tuple[int, bytes] = -1, b""
        if state.args["report_to"] and not state.args["dry_run"]:
            settings = {name: about(state.run_id) for name, about in TAKE_UP.items()}
            if state.step > 0:  # what was logged after the save is logged again
                settings["tensorboard"] = {"purge_step": state.step + 1}
            simple = (bool, int, float, str)
            config = {name: v for name, v in state.args.items() if isinstance(v, simple)}
            accelerator.init_trackers(
                Path.cwd().name, None if state.step > 0 else config, init_kwargs=settings
            )

    def announce(self, num_parameters: int, notes: list[str]) -> None:
        """Say what is about to be run."""
        state = self.state
        steps = f"{state.step} of {state.total_steps}" if state.step else f"{state.total_steps}"
        self.print(
            f"{num_parameters / 1e6:,.1f} M parameters from {state.args['model_id']}; "
            f"{state.data['examples']:,} examples, {state.global_batch_size} in a step; "
            f"{steps} steps",
            *notes,
            sep="\n",
        )

    def after_step(self, bar: tqdm, losses: LossSum, lr: float) -> None:
        """Move the bar; every `logging_steps` steps note the loss, and tell the trackers."""
        state = self.state
        if not bar.disable:
            seconds = (time.time() - bar.start_t) / (bar.n + 1 - bar.initial)  # a step
            left = bar.format_interval((state.total_steps - state.step) * seconds)
            bar.set_postfix({"loss": losses.last, "lr": lr, "left": left}, refresh=False)
            bar.update()
        if state.step % state.args["logging_steps"] == 0 and losses.last is not None:
            state.note(losses.last, lr)
            values = {"train/loss": losses.last, "train/lr": lr, "train/epoch": state.current_epoch}
            self.accelerator.log(values, step=state.step)

    def after_validation(self) -> None:
        """Draw loss.png, save what the scores show, and tell the trackers.

        Raises:
            RunError: there is no room.
        """
        log = list(self.state.log.values())[-1]["valid_log"]
        self.accelerator.log({f"valid/{k}": v for k, v in log.items()}, step=self.state.step)

        def save() -> None:
            with saving(self.outdir, 0):
                write_file(self.outdir / "loss.png", self.curves())
                self.scores.save(self.outdir)

        self.peers.main_does(save)

    def describe(self, folder: Path) -> None:
        """Write the model card and its picture into a checkpoint that is being written."""
        write_card(folder, self.state, self.pipeline_tag)
        (folder / "loss.png").write_bytes(self.curves())

    def curves(self) -> bytes:
        """The picture after the latest validation, drawn once."""
        if self._curves[0] != self.state.validated_step:
            self._curves = self.state.validated_step, draw_curves(self.state)
        return self._curves[1]

    def conclude(self) -> None:
        """Say what was reached and where it is; upload it, if that was asked for.

        Raises:
            RunError: the Hub did not take it.
        """
        self.accelerator.end_training()
        state, outdir = self.state, self.outdir
        if state.is_stuck and state.step < state.total_steps:
            metric, patience = state.args["metric_for_best_model"], state.args["patience"]
            self.print(f"Ended early: no better {metric} in {patience} validations")
        if not state.best:
            self.print("No validation loss was a number: there is no best/")
            return
        scores = {name: v for name, v in state.best.items() if name not in ("epoch", "count")}
        reached = ", ".join(f"{name} {value:.4g}" for name, value in scores.items())
        seconds = sum(entry["seconds"] for entry in state.log.values())
        self.print(
            f"{state.step:,} steps in {tqdm.format_interval(seconds)}",
            f"Best: {state.best['epoch']}, {reached}",
            f"  {outdir}/best       the model; python predict.py --checkpoint {outdir}/best",
            f"  {outdir}/last       to go on from, with --restore_dir",
            f"  {outdir}/loss.png   the curves of {outdir}/log.json",
            sep="\n",
        )
        if (repository := state.args["push_to_hub"]) is not None:
            self.peers.main_does(lambda: push(outdir / "best", repository))
            self.print(f"Uploaded to {repository}")
