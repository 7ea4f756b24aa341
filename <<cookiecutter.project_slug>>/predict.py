"""Use a checkpoint: a file in, a file out, in the same order; or a line at a time.

python predict.py --input new.jsonl --output predictions.jsonl
accelerate launch --multi_gpu --num_processes 2 predict.py --input new.jsonl    two GPUs
python predict.py                                    asks for a line, answers it, asks again
"""

import argparse
import json
import sys
from collections.abc import Iterable
from contextlib import suppress
from pathlib import Path

import numpy as np
from accelerate import Accelerator
from accelerate.utils import gather_object
from tqdm import tqdm

from errors import DataError, RunError
from model.modeling import Model
from model.prediction import OPTIONS, Predictor
from reading.tables import read_table
from reporting.help import HelpFormatter
from training.arguments import OneOrMore
from training.files import saving, write_file
from training.launch import run, start
from training.loading import load_model, load_tokenizer
from training.model_check import check_length
from training.state import TrainingState


def build_parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(usage="predict.py [arguments]", formatter_class=HelpFormatter)
    parser.add_argument("--checkpoint", default="outputs/best", help="folder that a run saved")
    files: dict = {"nargs": "+", "action": OneOrMore, "metavar": "FILE"}
    parser.add_argument("--input", help="if not given, lines from the terminal", **files)
    parser.add_argument("--output", default="predictions.jsonl", help="file to write")
    parser.add_argument("--column", nargs="+", help="columns to read, if not those of training")
    parser.add_argument("--batch_size", type=int, default=32, help="per process")
    parser.add_argument("--max_len", type=int, help="most tokens in a text, if not as in training")
    for name, option in OPTIONS.items():
        parser.add_argument(f"--{name}", **option)
    return parser


def predict(
    accelerator: Accelerator, predictor: Predictor, texts: list, batch_size: int
) -> list[dict]:
    """Predict all texts, those of like length together, in all processes.

    Returns:
        The predictions, in the order of the texts.
    """
    order = np.argsort([-len("".join(text)) for text in texts], kind="stable")
    batches = [order[begin : begin + batch_size] for begin in range(0, len(order), batch_size)]
    mine = batches[accelerator.process_index :: accelerator.num_processes]
    found: list[tuple[int, dict]] = []
    for batch in tqdm(mine, desc="[PREDICT]", disable=not accelerator.is_main_process):
        found += zip(batch.tolist(), predictor([texts[i] for i in batch]), strict=True)
    by_index = dict(gather_object(found))
    return [by_index[index] for index in range(len(texts))]


def converse(predictor: Predictor, lines: Iterable[str]) -> None:
    """Answer each line as it comes; a tab divides the texts of a pair."""
    print("> ", end="", flush=True)
    with suppress(KeyboardInterrupt):
        for line in lines:
            text = line.rstrip("\n")
            first, _, second = text.partition("\t")
            (prediction,) = predictor([text if len(predictor.columns) == 1 else [first, second]])
            print(json.dumps(prediction, ensure_ascii=False), end="\n> ", flush=True)
    print()


def main(argv: list[str] | None = None) -> None:
    args = build_parser().parse_args(argv)
    output = Path(args.output)
    for name in ("batch_size", "max_len", *OPTIONS):
        if (value := getattr(args, name)) is not None and value <= 0:
            raise RunError(f"--{name} {value}: expected more than 0")
    if not output.parent.is_dir():
        raise RunError(f"--output {output}: there is no folder {output.parent}")
    accelerator = start()
    if args.input is None and accelerator.num_processes > 1:
        raise RunError("several processes: expected a file to share, by --input")
    tokenizer = load_tokenizer(args.checkpoint)
    model = load_model(Model, args.checkpoint).to(accelerator.device).eval()
    state = TrainingState.read(Path(args.checkpoint))
    max_len = args.max_len or state.args["max_len"]
    check_length(model, max_len)
    options = {name: getattr(args, name) for name in OPTIONS}
    predictor = Predictor(model, tokenizer, max_len, state.schema, **options)
    print(*getattr(predictor, "notes", []), sep="\n", end="")
    if args.input is None:
        converse(predictor, sys.stdin)
        return
    columns = args.column or predictor.columns
    if len(columns) != len(predictor.columns):
        raise RunError(f"--column {' '.join(columns)}: expected {len(predictor.columns)} column(s)")
    lists = columns if getattr(predictor, "takes_lists", False) else []
    rows = read_table(args.input, columns, lists).to_list()
    texts = [list(row.values()) if len(row) > 1 else row[columns[0]] for row in rows]
    predictions = predict(accelerator, predictor, texts, args.batch_size)
    if accelerator.is_main_process:
        both = ({**row, **found} for row, found in zip(rows, predictions, strict=True))
        lines = "".join(json.dumps(line, ensure_ascii=False) + "\n" for line in both)
        with saving(output.parent, len(lines)):
            write_file(output, lines)
        print(f"{len(texts):,} predictions: see {output}")


if __name__ == "__main__":
    sys.exit(run(main, DataError))
