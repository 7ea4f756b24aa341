"""Predict with a checkpoint, either for all rows of a file, in their order, or interactively.

If the prediction of a file is interrupted, the same command resumes it.

python predict.py --input new.jsonl --output predictions.jsonl
accelerate launch --multi_gpu --num_processes 2 predict.py --input new.jsonl    two GPUs
python predict.py                          one prediction or answer for each line that you type
"""

import argparse
import io
import json
import sys
import zlib
from collections.abc import Callable, Iterable
from contextlib import suppress
from functools import partial
from inspect import getfile
from pathlib import Path
from typing import Any, NamedTuple

from training.command_line import check_early, parse_predict_args

if __name__ == "__main__":
    check_early(parse_predict_args)  # before the imports below, which take seconds

import torch
import transformers
from accelerate import Accelerator
from tqdm import tqdm
from transformers import PreTrainedTokenizerBase

from errors import DataError, RunError
from model.interface import Conversation, TaskPredictor
from reading.identity import hash_source, hash_tokenizer, hash_values
from reporting.predictions import check_output, hash_rows, open_rows, predict_rows
from training.contract import Task
from training.distributed import RankGroup
from training.launch import run, start
from training.loading import load_model, load_tokenizer
from training.lock import lock_file
from training.model_check import check_length
from training.output_file import OutputFile
from training.predictor_config import PREDICTOR_FILE, PredictorConfig
from training.state import STATE_FILE, SavedRun
from training.user_code import at_place

MAX_LEN = 128  # default of --max_len for a checkpoint without saved settings
PLACES = ("input", "output", "checkpoint")  # predictions do not depend on these paths


class Trained(NamedTuple):
    """A loaded checkpoint, and the settings of its training.

    Attributes:
        chosen: Arguments of `Predictor` that were chosen on the validation data: see
            `Scorer.predict_options`.
    """

    model: Any
    tokenizer: PreTrainedTokenizerBase | None
    max_len: int
    schema: dict[str, Any]
    chosen: dict[str, Any]


def load_trained(task: Task, args: argparse.Namespace, accelerator: Accelerator) -> Trained:
    """Load a checkpoint.

    Raises:
        RunError: `model/` has no Predictor, the checkpoint cannot be loaded, or the model cannot
            run a sequence of `--max_len` tokens.
    """
    if task.predictor_class is None:
        raise RunError("model/prediction.py: no class Predictor; expected one for predict.py")
    tokenizer = load_tokenizer(args.checkpoint) if task.needs_tokenizer else None
    settings = PredictorConfig.read(args.checkpoint)
    if settings is None:
        settings = PredictorConfig(MAX_LEN, schema={}, options={})
        accelerator.print(
            f"{args.checkpoint}: no {PREDICTOR_FILE} found; using --max_len "
            f"{args.max_len or MAX_LEN}, and defaults instead of the other settings that training "
            "saves, such as columns"
        )
    model = load_model(task.model_class, args.checkpoint, _model_options(task, args.checkpoint))
    model.to(accelerator.device).eval()
    max_len = args.max_len or settings.max_len
    check_length(model, max_len)
    return Trained(model, tokenizer, max_len, settings.schema, settings.options)


def _model_options(task: Task, checkpoint: str) -> dict[str, Any]:
    """Return the arguments of `ModelConfig` in training_state.json.

    The config.json of a checkpoint in stock form (see `model.base.Wrapper`) lacks them.
    """
    if not (Path(checkpoint) / STATE_FILE).is_file():
        return {}
    args = SavedRun.read(Path(checkpoint)).args
    return {name: value for name, value in args.items() if name in task.model_options}


def build_predictor(
    task: Task, trained: Trained, args: argparse.Namespace, accelerator: Accelerator
) -> TaskPredictor:
    """Build the predictor, and print its notes.

    Raises:
        RunError: The constructor of `Predictor` fails.
    """
    model, tokenizer, max_len, schema, chosen = trained
    given = {name: getattr(args, name) for name in task.predict_options}
    options = {name: chosen.get(name) if v is None else v for name, v in given.items()}
    predictor = task.build_predictor(model, tokenizer, max_len, schema, options)
    for note in getattr(predictor, "notes", []):
        accelerator.print(note)
    return predictor


def identify(task: Task, trained: Trained, args: argparse.Namespace, content: int) -> str:
    """Return a hash of all inputs on which the predictions depend.

    Args:
        content: Hash of the rows.
    """
    model, tokenizer, *settings = trained
    weights = 0
    for tensor in model.state_dict().values():
        data = tensor.cpu().contiguous().view(-1).view(torch.uint8).numpy()
        weights = zlib.crc32(data, weights)
    classes = [part for part in (task.predictor_class, task.model_class) if part is not None]
    return hash_values(
        content,
        weights,
        (model.config, getattr(model, "generation_config", None), model.device.type),
        tokenizer and hash_tokenizer(tokenizer),
        settings,
        {name: value for name, value in vars(args).items() if name not in PLACES},
        [hash_source(__file__, ""), *(hash_source(getfile(part), "model") for part in classes)],
        (torch.__version__, transformers.__version__),
    )


def predict_file(
    group: RankGroup,
    task: Task,
    trained: Trained,
    predictor: TaskPredictor,
    args: argparse.Namespace,
) -> None:
    """Predict the rows of a file, and write them with their predictions.

    Raises:
        RunError: The output cannot be written, is one of the input files, or is being written by
            another process; Predictor fails or expects another number of columns; or the input
            differs between ranks.
        DataError: The file cannot be read, or changes while it is read.
    """
    with group.in_agreement():
        check_output(args.input, args.output)
        rows = open_rows(args.input, args.column, predictor)
        count, content = hash_rows(rows())
    group.expect_equal({"content hash of --input": content})
    # Hashing all weights takes time. Only the main rank needs the hash, since it writes the output.
    identity = identify(task, trained, args, content) if group.is_main else ""
    output = OutputFile(args.output, identity)
    with lock_file(group, args.output):
        group.on_main(output.open)
        done = group.gather(output.lines)[0]
        bar = tqdm(desc="[PREDICT]", total=count, initial=done, disable=not group.is_main)
        with bar:
            for block in predict_rows(group, predictor, rows, done, args.batch_size, bar):
                group.on_main(partial(output.append, block))
                done += len(block)
        if done != count:
            raise DataError(
                f"{args.input}: {done:,} rows; expected {count:,}, as when predict.py started"
            )
        group.on_main(output.publish)
    if group.is_main:
        print(f"{count:,} predictions: see {args.output}")


class Lines:
    """Predict each line separately; a tab separates the two texts of a pair."""

    def __init__(self, predictor: TaskPredictor):
        self.predictor = predictor

    def answer(self, line: str, show: Callable[[str], object]) -> None:
        first, _, second = line.partition("\t")
        is_pair = len(self.predictor.columns) > 1
        (prediction,) = self.predictor([[first, second] if is_pair else line])
        show(json.dumps(prediction, ensure_ascii=False))


def start_conversation(predictor: TaskPredictor) -> Conversation:
    """Return a conversation; without `Predictor.start_conversation`, one that predicts each line.

    Raises:
        RunError: The predictor has `read` but no `start_conversation`: it accepts only files.
    """
    if hasattr(predictor, "start_conversation"):
        return predictor.start_conversation()
    if hasattr(predictor, "read"):
        raise RunError("model/prediction.py: Predictor.read reads files; expected --input")
    return Lines(predictor)


def converse(conversation: Conversation, lines: Iterable[str]) -> None:
    """Print an answer to each line."""
    show = partial(print, end="", flush=True)
    show("> ")
    with suppress(KeyboardInterrupt):
        for line in lines:
            with at_place("this line"):
                conversation.answer(line.rstrip("\n"), show)
            show("\n> ")
    print()


def standard_input() -> Iterable[str]:
    """Return the lines of standard input; bytes that are not UTF-8 become U+FFFD."""
    if isinstance(sys.stdin, io.TextIOWrapper):
        sys.stdin.reconfigure(encoding="utf-8", errors="replace")
    return sys.stdin


def main(argv: list[str] | None = None) -> None:
    task = Task()
    args = parse_predict_args(sys.argv[1:] if argv is None else argv)
    accelerator = start()
    if args.input is None and accelerator.num_processes > 1:
        raise RunError("several processes cannot share the terminal; expected --input")
    group = RankGroup(accelerator)
    with group.in_agreement():
        trained = load_trained(task, args, accelerator)
        predictor = build_predictor(task, trained, args, accelerator)
    if args.input is None:
        converse(start_conversation(predictor), standard_input())
    else:
        predict_file(group, task, trained, predictor, args)


if __name__ == "__main__":
    sys.exit(run(main))
