"""Predict with a checkpoint: for the rows of a file, in their order; or interactively.

python predict.py --input new.jsonl --output predictions.jsonl
accelerate launch --multi_gpu --num_processes 2 predict.py --input new.jsonl    two GPUs
python predict.py                                    a prediction or answer per line typed
"""

import argparse
import io
import json
import sys
import zlib
from collections.abc import Callable, Iterable
from contextlib import suppress
from functools import partial
from pathlib import Path

import numpy as np
from accelerate import Accelerator
from accelerate.utils import gather_object
from tqdm import tqdm

from errors import DataError, RunError
from model.interface import Conversation, TaskPredictor
from reading.tables import read_table
from training.atomic import saving, write_file
from training.contract import Task, predictor_input
from training.distributed import RankGroup
from training.help import HelpFormatter, OneOrMore
from training.launch import run, start
from training.loading import load_model, load_tokenizer
from training.model_check import check_length
from training.state import STATE_FILE, SavedRun
from training.user_code import at_place

MAX_LEN = 128  # for a checkpoint without training_state.json


def build_parser(task: Task) -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(usage="predict.py [arguments]", formatter_class=HelpFormatter)
    parser.add_argument("--checkpoint", default="outputs/best", help="folder of a trained model")
    files: dict = {"nargs": "+", "action": OneOrMore, "metavar": "FILE"}
    parser.add_argument("--input", help="input file(s); interactive if omitted", **files)
    parser.add_argument("--output", default="predictions.jsonl", help="output file")
    parser.add_argument("--column", nargs="+", help="columns to read (default: as in training)")
    parser.add_argument("--batch_size", type=int, default=32, help="examples per process and batch")
    parser.add_argument("--max_len", type=int, help="maximum sequence length in tokens")
    for name, option in task.predict_options.items():
        parser.add_argument(f"--{name}", **option)
    return parser


def parse_args(task: Task, argv: list[str] | None) -> argparse.Namespace:
    """Parse and check the arguments.

    Raises:
        RunError: A number is not positive, or the output folder does not exist.
    """
    args = build_parser(task).parse_args(argv)
    for name in ("batch_size", "max_len", *task.predict_options):
        value = getattr(args, name)
        if isinstance(value, (int, float)) and value <= 0:
            raise RunError(f"--{name} {value}: expected more than 0")
    args.checkpoint = str(Path(args.checkpoint).expanduser())
    args.output = Path(args.output).expanduser()
    if not args.output.parent.is_dir():
        raise RunError(f"--output {args.output}: there is no folder {args.output.parent}")
    return args


def load_predictor(task: Task, args: argparse.Namespace, accelerator: Accelerator) -> TaskPredictor:
    """Load a checkpoint, and build its predictor with the arguments of the training.

    Raises:
        RunError: `model/` has no Predictor, or the checkpoint cannot be loaded.
    """
    if task.predictor_class is None:
        raise RunError("model/prediction.py: no class Predictor; expected one for predict.py")
    checkpoint = Path(args.checkpoint)
    tokenizer = load_tokenizer(args.checkpoint) if task.needs_tokenizer else None
    schema: dict = {}
    model_options: dict = {}
    chosen: dict = {}
    max_len = MAX_LEN
    if (checkpoint / STATE_FILE).is_file():
        saved = SavedRun.read(checkpoint)
        schema = saved.schema
        max_len = saved.args["max_len"]
        chosen = saved.state.predict_options
        model_options = {name: v for name, v in saved.args.items() if name in task.model_options}
    model = load_model(task.model_class, args.checkpoint, model_options)
    model.to(accelerator.device).eval()
    max_len = args.max_len or max_len
    check_length(model, max_len)
    given = {name: getattr(args, name) for name in task.predict_options}
    options = {name: chosen.get(name) if v is None else v for name, v in given.items()}
    if not (checkpoint / STATE_FILE).is_file() and args.max_len is None:
        accelerator.print(f"{checkpoint} has no {STATE_FILE}: using --max_len {max_len}")
    predictor = task.build_predictor(model, tokenizer, max_len, schema, options)
    for note in getattr(predictor, "notes", []):
        accelerator.print(note)
    return predictor


def read_rows(args: argparse.Namespace, predictor: TaskPredictor) -> tuple[list[dict], list]:
    """Read the input: by `Predictor.read` if it exists, otherwise as text.

    Returns:
        The rows, and for each row the input of the predictor.

    Raises:
        RunError: `--column` has another number of columns than the predictor.
        DataError: The file cannot be read, or a column is missing.
    """
    columns = args.column or predictor.columns
    if len(columns) != len(predictor.columns):
        raise RunError(f"--column {' '.join(columns)}: expected {len(predictor.columns)} column(s)")
    predictor.columns = columns
    if hasattr(predictor, "read"):
        rows = _read_by(predictor.read, args.input, columns)
    else:
        lists = columns if getattr(predictor, "takes_lists", False) else []
        rows = read_table(args.input, columns, lists).to_list()
    return rows, [predictor_input(row) for row in rows]


def _read_by(read: Callable, source: str | list[str], columns: list[str]) -> list[dict]:
    try:
        return [{name: row[name] for name in columns} for row in read(source)]
    except OSError as error:
        raise DataError(f"{source}: cannot be read ({error})") from None
    except KeyError as error:
        raise DataError(f"{source}: a row without {error}; expected {columns}") from None


def predict(
    accelerator: Accelerator, predictor: TaskPredictor, texts: list, batch_size: int
) -> list[dict]:
    """Predict all texts, batched by length and divided among the ranks.

    Returns:
        The predictions in the order of the texts, on every rank.
    """
    order = np.argsort([-len(str(text)) for text in texts], kind="stable")
    batches = [order[begin : begin + batch_size] for begin in range(0, len(order), batch_size)]
    mine = batches[accelerator.process_index :: accelerator.num_processes]
    found: list[tuple[int, dict]] = []
    for batch in tqdm(mine, desc="[PREDICT]", disable=not accelerator.is_main_process):
        with at_place("--input", batch.tolist()):
            found += zip(batch.tolist(), predictor([texts[i] for i in batch]), strict=True)
    by_index = dict(gather_object(found))
    return [by_index[index] for index in range(len(texts))]


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
    """Start a conversation, or predict lines separately if the predictor has no conversations.

    Raises:
        RunError: The predictor only reads files.
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
    """Return the lines of the standard input; bytes that are not UTF-8 become U+FFFD."""
    if isinstance(sys.stdin, io.TextIOWrapper):
        sys.stdin.reconfigure(encoding="utf-8", errors="replace")
    return sys.stdin


def main(argv: list[str] | None = None) -> None:
    task = Task()
    args = parse_args(task, argv)
    accelerator = start()
    if args.input is None and accelerator.num_processes > 1:
        raise RunError("several processes cannot share the terminal; expected --input")
    group = RankGroup(accelerator)
    with group.in_agreement():
        predictor = load_predictor(task, args, accelerator)
    if args.input is None:
        converse(start_conversation(predictor), standard_input())
        return
    with group.in_agreement():
        rows, texts = read_rows(args, predictor)
    group.expect_equal(
        {"content hash of --input": zlib.crc32(repr(texts).encode("utf-8", "surrogatepass"))}
    )
    predictions = predict(accelerator, predictor, texts, args.batch_size)
    if accelerator.is_main_process:
        both = ({**row, **found} for row, found in zip(rows, predictions, strict=True))
        lines = "".join(json.dumps(line, ensure_ascii=False) + "\n" for line in both)
        with saving(args.output.parent, len(lines)):
            write_file(args.output, lines)
        print(f"{len(texts):,} predictions: see {args.output}")


if __name__ == "__main__":
    sys.exit(run(main))
