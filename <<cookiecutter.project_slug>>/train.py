"""Train the model of `model/` on the data of `data/`.

accelerate launch train.py                                          the first run, as it stands
accelerate launch train.py --train_input my.jsonl --valid_input my_valid.jsonl --outdir run1
accelerate launch train.py --restore_dir run1/last                  go on with a stopped run
accelerate launch --multi_gpu --num_processes 2 train.py            two GPUs
"""

import argparse
import math
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import nullcontext
from functools import partial
from pathlib import Path

import torch
from accelerate import Accelerator
from accelerate.utils import gather_object, send_to_device
from torch.optim.lr_scheduler import LambdaLR

from errors import DataError
from model.configuration import BASE_MODEL, ModelConfig
from model.dataset import OPTIONS, generate_dataset
from model.metrics import OPTIONS as SCORE_OPTIONS, Scores
from model.modeling import Model
from reporting.help import HelpFormatter
from reporting.preview import preview
from reporting.progress import progress_bar
from reporting.report import Report
from scaling.epochs import Epochs
from scaling.memory import fit_batch_size
from scaling.sharding import prepare, whole
from training.arguments import OneOrMore, add_arguments, parse_args
from training.batches import Batches, MicroBatch
from training.checkpoint import Checkpoints
from training.interruption import Interruption
from training.launch import run, start
from training.loading import build_config, build_model, load_model, load_tokenizer, set_up
from training.lock import locked
from training.model_check import check_model, tensors_of
from training.losses import LossSum
from training.optimization import Guard, build_optimizer, build_scheduler, take_step
from training.peers import Peers
from training.randomness import seed_all
from training.state import open_state


def build_parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(usage="train.py [arguments]", formatter_class=HelpFormatter)
    data = parser.add_argument_group("data and model")
    files: dict = {"nargs": "+", "action": OneOrMore, "metavar": "FILE"}
    data.add_argument("--train_input", default="data/train.jsonl", help="to learn from", **files)
    data.add_argument("--valid_input", default="data/valid.jsonl", help="to judge by", **files)
    for name, option in {**OPTIONS, **SCORE_OPTIONS}.items():
        data.add_argument(f"--{name}", **option)
    data.add_argument("--model_id", default=BASE_MODEL, help="base model: Hub id or folder")
    data.add_argument("--max_len", type=int, default=128, help="most tokens in a text or block")
    add_arguments(parser)
    return parser


def train_step(
    accelerator: Accelerator,
    model: torch.nn.Module,
    micro_batches: Iterator[tuple[dict[str, torch.Tensor], MicroBatch]],
) -> tuple[torch.Tensor, MicroBatch]:
    """Add up the gradients of a global batch; return this process's part of its loss."""
    step_loss = torch.zeros((), device=accelerator.device)
    for inputs, micro in micro_batches:
        seed_all(*micro.seed)
        inputs = send_to_device(inputs, accelerator.device, non_blocking=True)
        accelerator.sync_gradients = micro.ends_step
        with nullcontext() if micro.ends_step else accelerator.no_sync(model):
            loss = model(**tensors_of(inputs), num_items_in_batch=micro.num_items).loss * micro.weight
            # Gradients will be averaged, so times as many; and NaN for all if one is not finite.
            accelerator.backward(loss * (accelerator.num_processes + 0 * loss.detach()))
        step_loss += loss.detach()
        if micro.ends_step:
            break
    return step_loss, micro


def train(
    accelerator: Accelerator,
    model: torch.nn.Module,
    optimizer: torch.optim.Optimizer,
    scheduler: LambdaLR,
    batches: Batches,
    checkpoints: Checkpoints,
    report: Report,
) -> dict[str, float]:
    """Train to the next validation, or the end of the epoch; return what log.json keeps of it."""
    state = checkpoints.state
    done = -(-state.examples // batches.global_batch_size)  # the last step may be a smaller one
    losses = LossSum(accelerator, state.train_loss)
    guard = Guard(accelerator, model, optimizer, state.args["max_grad_norm"])
    micro_batches = batches.epoch(state.current_epoch, state.examples)
    model.train()
    with progress_bar(accelerator, state.current_epoch, "TRAIN", len(batches), done) as bar:
        for _ in range(min(len(batches) - done, state.steps_to_validation)):
            loss, step = train_step(accelerator, model, micro_batches)
            losses.add(guard.clip_and_check(loss), step)
            lr = optimizer.param_groups[0]["lr"]
            was_skipped = take_step(accelerator, optimizer, scheduler)
            state.advance(len(step.global_batch), step.num_items, was_skipped)
            report.after_step(bar, losses, lr)
            checkpoints.after_step(losses)
    return {"loss": checkpoints.sum_up(losses) / state.train_items}


@torch.no_grad()
def valid(
    accelerator: Accelerator,
    model: torch.nn.Module,
    batches: Batches,
    scores: Scores,
    epoch: int,
    after_batch: Callable[[], None] = lambda: None,
) -> dict[str, float]:
    """Compute loss and scores of the whole validation set; return what log.json keeps of it."""
    losses, count = LossSum(accelerator), int(batches.dataset.num_items.sum())
    scores.reset()
    model.eval()
    shown = progress_bar(accelerator, epoch, "VALID", len(batches))
    with whole(accelerator, model, getattr(scores, "generates", False)), shown as bar:
        for inputs, micro in batches.epoch():
            inputs = send_to_device(inputs, accelerator.device, non_blocking=True)
            outputs = model(**tensors_of(inputs), num_items_in_batch=micro.num_items)
            losses.add(outputs.loss * micro.weight, micro)
            if micro.weight:
                scores.update(outputs, inputs)
            bar.set_postfix(loss=losses.last, refresh=False)
            bar.update(micro.ends_step)
            after_batch()
        loss = math.fsum(gather_object([losses.total()])) / count
        log = {"loss": loss, **scores.compute(loss), "count": count}
        bar.set_postfix(log)
    return log


def main(argv: list[str] | None = None) -> None:
    args, notes = parse_args(build_parser(), argv)
    accelerator = start(f"{args.outdir}/trackers", args.report_to)
    peers = Peers(accelerator)
    tokenizer = load_tokenizer(args.restore_dir or args.model_id)
    options = {name: getattr(args, name) for name in OPTIONS}
    score_options = {name: getattr(args, name) for name in SCORE_OPTIONS}
    read = partial(generate_dataset, tokenizer=tokenizer, max_len=args.max_len)
    epochs = Epochs(args, accelerator, peers, partial(read, **options))
    train_set = epochs.dataset
    with peers.local_main_first():
        valid_set = read(args.valid_input, **train_set.schema)
    if args.restore_dir is None:
        config = build_config(ModelConfig, args.model_id, train_set.schema, tokenizer)
        if args.lr is None:
            args.lr = 5e-5 if config.base_has_weights else 2e-3
    with locked(peers, Path(args.outdir)), Interruption(peers) as interruption:
        state = open_state(
            args, train_set, accelerator, Scores.directions(train_set.schema, **score_options)
        )
        seed_all(args.seed)
        if args.restore_dir is None:
            model, more = build_model(Model, config, args.model_id)
            notes += more
        else:
            model = load_model(Model, args.restore_dir)
        set_up(model, args)
        notes += check_model(model, tokenizer, train_set, args.max_len)
        scores = Scores(model, tokenizer, accelerator.device, **score_options)
        report = Report(accelerator, peers, state, scores, model.config.pipeline_tag)
        report.announce(model.num_parameters(), notes)
        optimizer = build_optimizer(model, args.lr, args.weight_decay)
        model, optimizer = prepare(accelerator, model, optimizer, args.max_grad_norm)
        checkpoints = Checkpoints(
            accelerator, interruption, state, epochs, model, optimizer, tokenizer, report
        )
        checkpoints.restore(args.restore_dir)
        scheduler = build_scheduler(optimizer, args.lr_scheduler_type, args.num_warmup_steps, state)
        fit_batch_size(accelerator, peers, state, model, train_set)
        valid_batches = Batches(
            valid_set, accelerator, args.eval_batch_size, num_workers=args.num_workers
        )
        if args.dry_run:
            parts = (model, tokenizer, scheduler, epochs.batches(state), valid_batches, train_step)
            return preview(accelerator, state, *parts)
        while not state.is_over:
            began = time.perf_counter()
            train_log = train(
                accelerator, model, optimizer, scheduler, epochs.batches(state), checkpoints, report
            )
            epoch, pause = state.current_epoch, checkpoints.stop_if_due
            valid_log = valid(accelerator, model, valid_batches, scores, epoch, pause)
            is_best = state.record(train_log, valid_log, time.perf_counter() - began)
            checkpoints.save(is_best)
            report.after_validation()
    epochs.close()
    report.conclude()


if __name__ == "__main__":
    sys.exit(run(main, DataError))
