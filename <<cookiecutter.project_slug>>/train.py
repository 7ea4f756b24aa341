"""Train the model in `model/` on the data in `data/`.

accelerate launch train.py                                          first run, default arguments
accelerate launch train.py --train_input my.jsonl --valid_input my_valid.jsonl --outdir run1
accelerate launch train.py --restore_dir run1/last                  resume
accelerate launch --multi_gpu --num_processes 2 train.py            two GPUs
"""

import math
import sys
import time
from contextlib import closing
from itertools import islice

from training.command_line import check_early
from training.parser import check_form

if __name__ == "__main__":
    check_early(check_form)  # before the imports below, which take seconds

import torch
from accelerate.utils import send_to_device
from torch import Tensor

from errors import RunError
from model.interface import Scorer
from reporting.preview import preview
from reporting.report import Report
from training.batches import MicroBatch, Step
from training.contract import Task, chosen_options
from training.launch import run as exit_code_of
from training.losses import LOSS, LossMeter, add_losses, loss_factor
from training.opening import open_run
from training.optimization import optimizer_step, sum_over_ranks
from training.optimizers import scheduled_lr
from training.randomness import seed_all
from training.run import Run
from training.user_code import at_place, list_examples
from training.validation import SetResult, ValidationSet, combine, summarize


def train_step(run: Run, step: Step) -> dict[str, Tensor]:
    """Accumulate the gradient of a step; return the sums of the losses of its micro-batches."""
    step_losses: dict[str, Tensor] = {}
    for micro in step.micro_batches:
        with at_place(step.place, micro.indices):
            losses = add_gradient(run, step, micro)
        add_losses(step_losses, losses, loss_factor(run.task, micro))
    return step_losses


def add_gradient(run: Run, step: Step, micro: MicroBatch) -> dict[str, Tensor]:
    """Accumulate the gradient of a micro-batch; return its losses."""
    # Dropout depends only on seed, epoch, step, rank and micro-batch: no RNG state has to be saved.
    seed_all(*micro.rng_key)
    batch = send_to_device(micro.batch, run.accelerator.device, non_blocking=True)
    run.throughput.add_batch(micro.batch)
    # Gradients are reduced over the ranks once per step, in the last backward pass of the step
    # (with ZeRO: in each backward pass).
    with run.strategy.gradient_sync(run.model, enabled=micro.is_last):
        # `forward` divides the sum of the losses by the number of target items of the full step,
        # over all micro-batches and ranks, so that the gradient does not depend on how the step is
        # split. If `forward` returns the mean of the micro-batch, `factor` is `micro.share`.
        _, losses = run.task.forward(run.model, batch, step.num_items)
        factor = loss_factor(run.task, micro)
        # The loss is multiplied by the number of ranks, since DDP, FSDP and ZeRO average gradients
        # over the ranks. If the loss is not finite, the gradients on all ranks become NaN.
        loss = sum_over_ranks(losses[LOSS] * factor, run.accelerator.num_processes)
        run.accelerator.backward(loss)
    return losses


def train_until_validation(run: Run, report: Report) -> dict[str, float]:
    """Train until the next validation or the end of the epoch.

    Returns:
        The mean losses since the start of the epoch, over all ranks.
    """
    state = run.state
    batches = run.train_batches
    all_steps = batches.steps(state.current_epoch, start=state.examples)
    # Number of steps done in this epoch. The last step of an epoch may have fewer examples.
    done = math.ceil(state.examples / batches.global_batch_size)
    left = min(len(batches) - done, state.steps_to_validation(run.config.valid_steps))
    run.losses = LossMeter(run.accelerator, {LOSS: state.train_loss, **state.named_losses})
    run.model.train()
    run.throughput.restart()
    bar = report.progress_bar("TRAIN", len(batches), done)
    with bar, closing(all_steps) as steps:
        for step in islice(steps, left):
            losses = train_step(run, step)
            # After a loss or gradient that is not finite, `losses[LOSS]` is NaN, and all optimizer
            # steps are skipped (for float16, see `GradientGuard`). A fused optimizer can skip a
            # step without device synchronization.
            losses[LOSS], norm = run.guard.clip_gradients(losses[LOSS])
            lr = scheduled_lr(run.optimizer)
            with at_place(step.place):
                was_skipped = optimizer_step(
                    run.accelerator, run.optimizer, run.scheduler, run.guard, run.average.update
                )
            state.advance(len(step.examples), step.num_items, was_skipped)
            run.losses.update(losses, step, norm)
            run.throughput.add_step(step, batches.examples)
            report.after_step(bar, lr)
            save_point(run, is_due=is_multiple(state.step, run.config.save_steps))
    return mean_losses(run)


def save_point(run: Run, is_due: bool = False) -> None:
    """Save `last/` if `is_due`, or if a rank received a signal. After a signal, also stop the run.

    With several ranks, the run stops one call later than with a single rank: each call starts to
    exchange the signals of the ranks in the background, and the next call reads the result.

    Raises:
        Stopped: A rank received a signal, and `last/` has been saved.
        RunError: A loss or gradient was not finite, or a save failed.
    """
    is_broken = run.losses.first_bad_step is not None or run.checkpoints.has_failed
    must_stop = run.signals.stop_requested(is_broken)
    if must_stop or is_due:
        mean_losses(run)  # raises a RunError instead of saving if a loss was not finite
        with run.average.applied(False):  # save the weights, not their average, as last/
            run.checkpoints.save(run.model, run.optimizer, run.state)
    if must_stop:
        run.checkpoints.join()
        raise run.signals.stopped(run.config.outdir)


def is_multiple(step: int, interval: int | None) -> bool:
    return interval is not None and step % interval == 0


def mean_losses(run: Run) -> dict[str, float]:
    """Copy the loss sums of the epoch into the state; return the mean losses over all ranks.

    Raises:
        RunError: A loss or gradient was not finite: see `raise_not_finite`.
    """
    sums = run.losses.sums()
    run.state.add_grad_norms(run.losses.take_norms())
    run.state.train_loss = sums.get(LOSS, 0.0)
    run.state.named_losses = {name: value for name, value in sums.items() if name != LOSS}
    gathered = run.group.gather((sums, run.losses.first_bad_step))
    bad = [step for _, step in gathered if step is not None]
    if bad:
        raise_not_finite(run, min(bad, key=lambda step: (step.epoch, step.index)))
    items = run.state.train_items or 1
    names = [LOSS, *run.state.named_losses]
    return {name: math.fsum(part.get(name, 0.0) for part, _ in gathered) / items for name in names}


def raise_not_finite(run: Run, step: Step) -> None:
    """Save `bad_batch/` for a step whose loss or gradient is not finite, and raise a RunError."""
    place = run.checkpoints.save_bad_batch(run.model, run.train_data.examples, step)
    raise RunError(
        f"{step.place}: the loss or its gradient is not finite for {list_examples(step.examples)}; "
        f"{place}"
    )


def validate_step(run: Run, step: Step, losses: LossMeter, scorers: list[Scorer]) -> None:
    """Run the model on a batch of validation examples; update `losses` and `scorers`."""
    for micro in step.micro_batches:
        batch = send_to_device(micro.batch, run.accelerator.device, non_blocking=True)
        factor = loss_factor(run.task, micro)
        with at_place(step.place, micro.indices):
            outputs, parts = run.task.forward(run.model, batch, step.num_items)
            losses.update({name: part * factor for name, part in parts.items()}, step)
            for scores in scorers if micro.weight else []:  # weight 0: this rank has no example
                scores.update(outputs, batch)
        save_point(run)


def validate_set(run: Run, report: Report, part: ValidationSet) -> SetResult:
    """Compute the losses and scores of a validation set over all ranks."""
    losses = LossMeter(run.accelerator)
    count = part.batches.examples.num_items.sum().item()
    part.scorers[-1].reset()
    bar = report.progress_bar(f"VALID {part.name}".strip(), len(part.batches))
    with bar, closing(part.batches.steps()) as steps:
        for step in steps:
            validate_step(run, step, losses, part.scorers)
            bar.set_postfix(losses.latest, refresh=False)
            bar.update()
        gathered = run.group.gather(losses.sums())
        sums = {name: math.fsum(rank[name] for rank in gathered) for name in gathered[0]}
        log = summarize(sums, count, part.scorers[-1])
        bar.set_postfix(log)
    return SetResult(part.name, sums, log)


@torch.no_grad()
def validate(run: Run, report: Report) -> dict[str, float]:
    """Compute the losses and scores of all validation data, and of each named set."""
    run.scores.reset()
    run.model.eval()
    generates = getattr(run.scores, "generates", False)
    with run.strategy.full_parameters(run.model, generates):
        results = [validate_set(run, report, part) for part in run.valid_sets]
        log = combine(results, run.scores)
    run.state.predict_options = chosen_options(run.scores)
    report.after_sets(log, len(results))
    # Ranks with different scores would make different decisions about best/ and early stopping.
    advice = "(Scores.compute has to reduce it over the ranks)"
    run.group.expect_equal({f"{name} {advice}": log[name] for name in log})
    return log


def main(argv: list[str] | None = None) -> None:
    argv = sys.argv[1:] if argv is None else argv
    with open_run(Task(), argv) as run:
        report = Report(run)
        report.start()
        if run.config.dry_run:
            preview(run, train_step)
            return
        while not run.state.is_finished(run.config.patience):
            start = time.perf_counter()
            train_log = train_until_validation(run, report)
            speed = run.throughput.since_restart(run.group)
            # Save before the first validation: if the validation fails, no steps are lost.
            save_point(run, is_due=not run.state.log)
            with run.average.applied():
                valid_log = validate(run, report)
            is_best = run.state.record(
                train_log,
                valid_log,
                run.config.metric_for_best_model,
                seconds=time.perf_counter() - start,
                speed=speed,
                epoch_size=len(run.train_data.examples),
            )
            describe = report.describe() if is_best else None
            run.checkpoints.save(run.model, run.optimizer, run.state, describe)
            report.after_validation()
        report.finish()


if __name__ == "__main__":
    sys.exit(exit_code_of(main))
