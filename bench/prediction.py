"""Compare the speed of predict.py with that of transformers.

python bench/prediction.py --encoder FOLDER [--rows 600] [--rounds 3] [--write FOLDER]

classification: `pipeline` with several batch sizes, on texts of varying length. seq2seq:
`Seq2SeqTrainer` with `predict_with_generate` and greedy search. The model is trained briefly
before, so that the lengths of its outputs vary.

predict.py and the tool of transformers predict the same rows with the same weights alternately, in
one process with one thread. The script compares the predictions. It needs no network.
"""

import argparse
import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
from common import environment, render, table

MEDIAN, SIGMA = 2.0, 0.8  # log-normal distribution of the number of rows joined to a text
BATCH_SIZES = (1, 8, 32)  # of `pipeline`
BATCH_SIZE = 32
MAX_LEN = 256
NEW_TOKENS = 128


def write_rows(source: Path, target: Path, count: int, seed: int) -> None:
    """Write texts of varying length, which are joined rows of the project's data."""
    lines = source.read_text(encoding="utf-8").splitlines()
    rows = [json.loads(line) for line in lines]
    rng = np.random.default_rng(seed)
    with target.open("w", encoding="utf-8") as file:
        for size in np.clip(rng.lognormal(np.log(MEDIAN), SIGMA, count), 1, 12).astype(int):
            some = [rows[index] for index in rng.integers(0, len(rows), size)]
            row = {name: " _ ".join(part[name] for part in some) for name in some[0]}
            row |= {"label": some[0]["label"]} if "label" in row else {}
            file.write(json.dumps(row) + "\n")


def train(project: Path, folder: Path, *arguments: str) -> Path:
    """Train a model; return the folder best/ of the run."""
    data = [f"--train_input={folder / 'train.jsonl'}", f"--valid_input={folder / 'valid.jsonl'}"]
    command = [sys.executable, "train.py", *data, f"--max_len={MAX_LEN}", *arguments]
    subprocess.run(
        [*command, f"--outdir={folder / 'run'}"], cwd=project, check=True, capture_output=True
    )
    return folder / "run" / "best"


def compare(ours: Callable, others: dict[str, Callable], rounds: int) -> dict[str, Any]:
    """Run all systems alternately; return median seconds and the fraction of equal predictions."""
    seconds: dict[str, list[float]] = {}
    expected: list = []
    equal: dict[str, float] = {}
    for _ in range(rounds):
        for name, predict in {"predict.py": ours, **others}.items():
            start = time.perf_counter()
            found = predict()
            seconds.setdefault(name, []).append(time.perf_counter() - start)
            expected = found if name == "predict.py" else expected
            equal[name] = statistics.mean(a == b for a, b in zip(found, expected, strict=True))
    return {name: (statistics.median(times), equal[name]) for name, times in seconds.items()}


def project_predictor(task_name: str, checkpoint: Path, rows: Path) -> tuple[Any, Callable]:
    """Return the predictor, and a function that predicts all rows as predict.py does."""
    from tqdm import tqdm

    import predict
    from reporting.predictions import open_rows, predict_rows
    from training.command_line import parse_predict_args
    from training.contract import Task
    from training.distributed import RankGroup
    from training.launch import start

    more = [f"--max_new_tokens={NEW_TOKENS}"] if task_name == "seq2seq" else []
    args = parse_predict_args(["--checkpoint", str(checkpoint), "--input", str(rows), *more])
    task = Task()
    accelerator = start()
    trained = predict.load_trained(task, args, accelerator)
    predictor = predict.build_predictor(task, trained, args, accelerator)
    group = RankGroup(accelerator)

    def run() -> list[str]:
        blocks = predict_rows(
            group,
            predictor,
            open_rows(str(rows), None, predictor),
            0,
            BATCH_SIZE,
            tqdm(disable=True),
        )
        return [row["prediction"] for block in blocks for row in block]

    return predictor, run


def classification(checkpoint: Path, rows: Path, rounds: int) -> dict[str, Any]:
    from transformers import pipeline

    _, ours = project_predictor("classification", checkpoint, rows)
    texts = [json.loads(line)["text"] for line in rows.read_text(encoding="utf-8").splitlines()]
    classify = pipeline("text-classification", str(checkpoint), device="cpu")
    options = {"truncation": True, "max_length": MAX_LEN}

    def by_pipeline(size: int) -> list[str]:
        return [found["label"] for found in classify(texts, batch_size=size, **options)]

    others = {
        f"pipeline(batch_size={size})": lambda size=size: by_pipeline(size) for size in BATCH_SIZES
    }
    return compare(ours, others, rounds)


def seq2seq(checkpoint: Path, rows: Path, rounds: int) -> dict[str, Any]:
    from datasets import Dataset
    from transformers import (
        AutoModelForSeq2SeqLM,
        DataCollatorForSeq2Seq,
        Seq2SeqTrainer,
        Seq2SeqTrainingArguments,
    )

    predictor, ours = project_predictor("seq2seq", checkpoint, rows)
    sources = [json.loads(line)["source"] for line in rows.read_text("utf-8").splitlines()]
    tokenizer = predictor.tokenizer
    model = AutoModelForSeq2SeqLM.from_pretrained(checkpoint)
    options = {"truncation": True, "max_length": MAX_LEN}
    encoded = [dict(tokenizer(text, **options)) for text in sources]
    data = Dataset.from_list([{**row, "labels": row["input_ids"][:1]} for row in encoded])

    def by_trainer(size: int) -> list[str]:
        arguments = Seq2SeqTrainingArguments(
            output_dir=tempfile.mkdtemp(),
            predict_with_generate=True,
            generation_max_length=NEW_TOKENS + 1,
            per_device_eval_batch_size=size,
            report_to=[],
            disable_tqdm=True,
            use_cpu=True,
        )
        trainer = Seq2SeqTrainer(
            model,
            arguments,
            data_collator=DataCollatorForSeq2Seq(tokenizer, model),
            processing_class=tokenizer,
        )
        found = trainer.predict(data).predictions
        return predictor.decode(np.where(found < 0, tokenizer.pad_token_id, found))

    others = {
        f"Seq2SeqTrainer(batch {size})": lambda size=size: by_trainer(size) for size in (8, 32)
    }
    return compare(ours, others, rounds)


def measure(task: str, args: argparse.Namespace, folder: Path) -> dict[str, Any]:
    """Train a model; measure predictions in a process that runs in the rendered project."""
    project = render(task, folder)
    for name, count, seed in (("train", 3000, 0), ("valid", 100, 1), ("new", args.rows, 2)):
        source = project / "data" / ("train.jsonl" if name == "train" else "valid.jsonl")
        write_rows(source, folder / f"{name}.jsonl", count, seed)
    steps = f"--max_steps={args.steps}"
    encoder = ["--model_id", args.encoder] if args.encoder and task == "classification" else []
    more = [*encoder, "--max_steps=2"] if encoder else [steps]
    checkpoint = train(project, folder, *more)
    command = [sys.executable, __file__, "--measure", task, str(checkpoint), "--rounds"]
    done = subprocess.run(
        [*command, str(args.rounds), "--input", str(folder / "new.jsonl")],
        cwd=project,
        env={**os.environ, "PYTHONPATH": str(project)},
        capture_output=True,
        text=True,
    )
    if done.returncode:
        raise RuntimeError(done.stderr[-3000:])
    return json.loads(done.stdout.splitlines()[-1])


def markdown(results: dict[str, Any], args: argparse.Namespace, about: dict[str, str]) -> str:
    rows = []
    for task, systems in results.items():
        ours = systems["predict.py"][0]
        for name, (seconds, equal) in systems.items():
            row = [task, name, f"{args.rows / seconds:,.1f}", f"{seconds / ours:.2f}"]
            rows.append([*row, f"{equal:.1%}"])
    head = ["task", "system", "rows/s", "predict.py is × as fast", "equal predictions"]
    return f"""# Speed of prediction

Written by `python bench/prediction.py`. {"; ".join(f"{k} {v}" for k, v in about.items())}.
{args.rows} rows, medians of {args.rounds} rounds, one thread. Texts are joined rows of the
project's data; the number of joined rows has a log-normal distribution (median {MEDIAN:.0f},
sigma {SIGMA}). The model for classification is the encoder given by `--encoder`. The model for
seq2seq is `tiny` after {args.steps} training steps; it generates at most {NEW_TOKENS} tokens by
greedy search. transformers 5 has no text-to-text pipeline.

{table(*head, rows=rows)}"""


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__.partition("\n")[0],
        formatter_class=argparse.ArgumentDefaultsHelpFormatter,
    )
    parser.add_argument("--rows", type=int, default=600, help="rows to predict")
    parser.add_argument("--rounds", type=int, default=3, help="runs of each system")
    parser.add_argument("--steps", type=int, default=300, help="training steps of seq2seq")
    parser.add_argument("--encoder", help="folder of an encoder, such as all-MiniLM-L6-v2")
    parser.add_argument("--tasks", nargs="+", default=["classification", "seq2seq"], help="tasks")
    parser.add_argument("--write", help="folder for prediction.md")
    parser.add_argument("--measure", nargs=2, help=argparse.SUPPRESS)
    parser.add_argument("--input", type=Path, help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.measure:
        task, checkpoint = args.measure
        run = {"classification": classification, "seq2seq": seq2seq}[task]
        print(json.dumps(run(Path(checkpoint), args.input, args.rounds)))
        return
    os.environ.update(HF_HUB_OFFLINE="1", OMP_NUM_THREADS="1", ACCELERATE_USE_CPU="true")
    results = {}
    for task in args.tasks:
        with tempfile.TemporaryDirectory() as name:
            results[task] = measure(task, args, Path(name))
    text = markdown(results, args, environment())
    print(text)
    if args.write:
        Path(args.write, "prediction.md").write_text(text, encoding="utf-8")


if __name__ == "__main__":
    main()
