"""Compare the speed of predict.py, and of validation, with that of transformers.

python bench/prediction.py [--encoder FOLDER] [--rows 200] [--rounds 2] [--write FOLDER]

The table compares this project with

- classification: `pipeline` with several batch sizes
- seq2seq: `Seq2SeqTrainer.predict` with `predict_with_generate`
- validation of seq2seq: `Seq2SeqTrainer.evaluate` with `predict_with_generate` and the same scores
- causal_lm and chat: `pipeline` with several batch sizes and with a static cache, and continuous
  batching by `generate_batch`

All systems predict the same rows with the same weights alternately, in one process with one thread,
by greedy search. The models are trained briefly beforehand, so that the lengths of their outputs
vary. The script measures CPU time, on which other processes have little influence, and compares
the predictions with those of a batch size of 1. It needs no network.
"""

import argparse
import copy
import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from contextlib import ExitStack
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
from common import environment, render, table

MEDIAN, SIGMA = 2.0, 0.8  # log-normal distribution of the number of rows joined into a text
PROMPT = 24  # median number of words of a prompt of causal_lm
BATCH_SIZES = (1, 8, 32)  # for the tools of transformers
BATCH_SIZE = 32
MAX_LEN = 256
NEW_TOKENS = 128
STEPS = {"classification": 2, "causal_lm": 100}  # training steps; in other tasks --steps
OURS = "this project"


def write_rows(source: Path, target: Path, count: int, seed: int) -> None:
    """Write rows of varying length, made of rows of the project's data.

    If rows have a label or a target, several of them are joined. For causal_lm, a row is a sequence
    of words from a random position of a text. Conversations are written unchanged.
    """
    lines = source.read_text(encoding="utf-8").splitlines()
    rows = [json.loads(line) for line in lines]
    rng = np.random.default_rng(seed)
    sizes = rng.lognormal(np.log(MEDIAN), SIGMA, count)
    with target.open("w", encoding="utf-8") as file:
        for size in sizes:
            some = [rows[n] for n in rng.integers(0, len(rows), min(12, max(1, int(size))))]
            file.write(json.dumps(join(some, size, rng)) + "\n")


def join(some: list[dict], size: float, rng: np.random.Generator) -> dict[str, Any]:
    first = some[0]
    if "messages" in first:
        return first
    if list(first) == ["text"]:
        words = first["text"].split(" ")
        start = rng.integers(0, max(1, len(words) - 100))
        return {"text": " ".join(words[start:][: min(60, max(2, int(PROMPT / MEDIAN * size)))])}
    row = {name: " _ ".join(part[name] for part in some) for name in first}
    return row | ({"label": first["label"]} if "label" in row else {})


def train(project: Path, folder: Path, *arguments: str) -> Path:
    """Train a model; return the folder best/ of the run."""
    data = [f"--train_input={folder / 'train.jsonl'}", f"--valid_input={folder / 'valid.jsonl'}"]
    command = [sys.executable, "train.py", *data, f"--max_len={MAX_LEN}", *arguments]
    subprocess.run(
        [*command, f"--outdir={folder / 'run'}"], cwd=project, check=True, capture_output=True
    )
    return folder / "run" / "best"


class Tokens:
    """Counts the tokens that `generate` computes, and those that belong to finished rows."""

    def __init__(self) -> None:
        from transformers import GenerationMixin

        self.generate = GenerationMixin.generate
        self.computed = 0
        self.finished = 0
        counter = self

        def counted(model: Any, input_ids: Any, **options: Any) -> Any:
            found = counter.generate(model, input_ids, **options)
            start = 1 if model.config.is_encoder_decoder else input_ids.shape[1]
            new = getattr(found, "sequences", found)[:, start:]
            counter.computed += new.numel()
            counter.finished += int((new == model.generation_config.pad_token_id).sum())
            return found

        GenerationMixin.generate = counted

    def share(self) -> float:
        """Return the share of tokens for finished rows since the preceding call of `share`."""
        share = self.finished / (self.computed or 1)
        self.computed = self.finished = 0
        return share


def compare(systems: dict[str, Callable[[], list[str]]], rounds: int) -> dict[str, Any]:
    """Run all systems alternately, but the first one only once.

    Returns:
        For each system: the median CPU seconds, the fraction of predictions that equal those of the
        first system, and the share of generated tokens that belong to finished rows.
    """
    seconds: dict[str, list[float]] = {}
    texts: dict[str, list[str]] = {}
    shares: dict[str, float] = {}
    first = next(iter(systems))
    tokens = Tokens()
    for number in range(rounds):
        for name, predict in systems.items():
            if name == first and number > 0:
                continue
            start = time.process_time()
            texts[name] = predict()
            seconds.setdefault(name, []).append(time.process_time() - start)
            shares[name] = tokens.share()
    return {
        name: (
            statistics.median(times),
            statistics.mean(a == b for a, b in zip(texts[name], texts[first], strict=True)),
            shares[name],
        )
        for name, times in seconds.items()
    }


def project_predictor(checkpoint: Path, rows: Path, *options: str) -> tuple[Any, Callable]:
    """Return the predictor, and a function that predicts all rows as predict.py does."""
    from tqdm import tqdm

    import predict
    from reporting.predictions import open_rows, predict_rows
    from training.command_line import parse_predict_args
    from training.contract import Task
    from training.distributed import RankGroup
    from training.launch import start

    args = parse_predict_args(["--checkpoint", str(checkpoint), "--input", str(rows), *options])
    task = Task()
    accelerator = start()
    trained = predict.load_trained(task, args, accelerator)
    predictor = predict.build_predictor(task, trained, args, accelerator)
    group = RankGroup(accelerator)

    def run() -> list[str]:
        opened = open_rows(str(rows), None, predictor)
        blocks = predict_rows(group, predictor, opened, 0, BATCH_SIZE, tqdm(disable=True))
        return [row["prediction"] for block in blocks for row in block]

    return predictor, run


def read(rows: Path, column: str) -> list[Any]:
    return [json.loads(line)[column] for line in rows.read_text(encoding="utf-8").splitlines()]


def ordered(ours: Callable, others: list[tuple[str, Callable]]) -> dict[str, Callable]:
    """Return all systems; the first one predicts row by row."""
    return dict([others[0], (OURS, ours), *others[1:]])


def by_pipeline(predict: Callable, inputs: list, read_text: Callable) -> list[tuple[str, Callable]]:
    def run(size: int) -> list[str]:
        return [read_text(found) for found in predict(inputs, batch_size=size)]

    return [(f"pipeline(batch_size={size})", partial(run, size)) for size in BATCH_SIZES]


def classification(checkpoint: Path, rows: Path) -> dict[str, Callable]:
    from transformers import pipeline

    _, ours = project_predictor(checkpoint, rows)
    classify = pipeline("text-classification", str(checkpoint), device="cpu")
    classify = partial(classify, truncation=True, max_length=MAX_LEN)
    return ordered(ours, by_pipeline(classify, read(rows, "text"), lambda found: found["label"]))


def causal_lm(checkpoint: Path, rows: Path) -> dict[str, Callable]:
    texts = read(rows, "text")
    return text_generation(checkpoint, rows, texts, lambda tokenizer, text: tokenizer(text))


def chat(checkpoint: Path, rows: Path) -> dict[str, Callable]:
    def encode(tokenizer: Any, messages: list[dict]) -> Any:
        return tokenizer.apply_chat_template(messages, add_generation_prompt=True, return_dict=True)

    # Remove the answer: predict.py answers the last message of a user.
    messages = [found[:-1] for found in read(rows, "messages")]
    return text_generation(checkpoint, rows, messages, encode)


def text_generation(
    checkpoint: Path, rows: Path, inputs: list, encode: Callable
) -> dict[str, Callable]:
    from transformers import ContinuousBatchingConfig, pipeline

    _, ours = project_predictor(checkpoint, rows, f"--max_new_tokens={NEW_TOKENS}")
    generate = pipeline("text-generation", str(checkpoint), device="cpu", dtype="float32")
    tokenizer = generate.tokenizer
    tokenizer.padding_side = "left"
    options = {"max_new_tokens": NEW_TOKENS, "do_sample": False, "return_full_text": False}
    generate_new = partial(generate, **options)

    def text(found: list[dict]) -> str:
        return found[0]["generated_text"]

    def static() -> list[str]:
        static_cache = {"batch_size": BATCH_SIZE, "cache_implementation": "static"}
        return [text(found) for found in generate_new(inputs, **static_cache)]

    def continuous() -> list[str]:
        ids = [encode(tokenizer, value)["input_ids"] for value in inputs]
        settings = copy.deepcopy(generate.model.generation_config)
        settings.update(max_new_tokens=NEW_TOKENS, do_sample=False)
        # By default, the cache would be as large as the memory of an accelerator.
        sizes = ContinuousBatchingConfig(page_size=32, num_blocks=512, max_batch_tokens=256)
        found = generate.model.generate_batch(ids, settings, sizes)
        by_number = sorted(found, key=lambda name: int(name.rpartition("_")[2]))
        tokens = [found[name].generated_tokens for name in by_number]
        return tokenizer.batch_decode(tokens, skip_special_tokens=True)

    others = by_pipeline(generate_new, inputs, text)
    others += [("pipeline(batch_size=32), static cache", static), ("generate_batch", continuous)]
    return ordered(ours, others)


def trainers(
    checkpoint: Path, data: list[dict], tokenizer: Any, use: Callable
) -> list[tuple[str, Callable]]:
    """Return a system for each batch size: a function that calls `use(trainer, dataset)`."""
    from datasets import Dataset
    from transformers import (
        AutoModelForSeq2SeqLM,
        DataCollatorForSeq2Seq,
        Seq2SeqTrainer,
        Seq2SeqTrainingArguments,
    )

    model = AutoModelForSeq2SeqLM.from_pretrained(checkpoint)
    dataset = Dataset.from_list(data)

    def run(size: int) -> list[str]:
        arguments = Seq2SeqTrainingArguments(
            output_dir=tempfile.mkdtemp(),
            predict_with_generate=True,
            generation_max_length=NEW_TOKENS + 1,
            per_device_eval_batch_size=size,
            report_to=[],
            disable_tqdm=True,
            use_cpu=True,
        )
        collator = DataCollatorForSeq2Seq(tokenizer, model)
        trainer = Seq2SeqTrainer(
            model, arguments, data_collator=collator, processing_class=tokenizer
        )
        return use(trainer, dataset)

    return [(f"Seq2SeqTrainer(batch {size})", partial(run, size)) for size in BATCH_SIZES]


def tokenized(rows: Path, tokenizer: Any) -> list[dict]:
    options = {"truncation": True, "max_length": MAX_LEN}
    return [
        {
            **tokenizer(source, **options),
            "labels": tokenizer(text_target=target, **options).input_ids,
        }
        for source, target in zip(read(rows, "source"), read(rows, "target"), strict=True)
    ]


def seq2seq(checkpoint: Path, rows: Path) -> dict[str, Callable]:
    predictor, ours = project_predictor(checkpoint, rows, f"--max_new_tokens={NEW_TOKENS}")
    tokenizer = predictor.tokenizer
    data = [row | {"labels": row["labels"][:1]} for row in tokenized(rows, tokenizer)]

    def use(trainer: Any, dataset: Any) -> list[str]:
        found = trainer.predict(dataset).predictions
        return predictor.decode(np.where(found < 0, tokenizer.pad_token_id, found))

    return ordered(ours, trainers(checkpoint, data, tokenizer, use))


def validation(checkpoint: Path, rows: Path) -> dict[str, Callable]:
    import sacrebleu

    import train
    from reporting.report import Report
    from training.contract import Task
    from training.opening import open_run

    arguments = [f"--model_id={checkpoint}", f"--train_input={rows}", f"--valid_input={rows}"]
    arguments += [f"--max_new_tokens={NEW_TOKENS}", f"--max_len={MAX_LEN}"]
    arguments += [f"--eval_batch_size={BATCH_SIZE}", f"--outdir={tempfile.mkdtemp()}/run"]
    run = ExitStack().enter_context(open_run(Task(), arguments))
    report = Report(run)

    def ours() -> list[str]:
        train.validate(run, report)
        texts = {source: text for source, _, text in run.scores.texts}
        return [texts[source] for source in read(rows, "source")]

    def use(trainer: Any, dataset: Any) -> list[str]:
        texts: list[str] = []

        def score(found: Any) -> dict[str, float]:
            pad = run.tokenizer.pad_token_id
            texts[:], references = (
                run.scores.decode(np.where(ids < 0, pad, ids))
                for ids in (found.predictions, found.label_ids)
            )
            return {
                "exact_match": statistics.mean(map(str.__eq__, texts, references)),
                "bleu": sacrebleu.corpus_bleu(texts, [references], force=True).score,
                "chrf": sacrebleu.corpus_chrf(texts, [references]).score,
            }

        trainer.compute_metrics = score
        trainer.evaluate(dataset)
        return texts

    data = tokenized(rows, run.tokenizer)
    return ordered(ours, trainers(checkpoint, data, run.tokenizer, use))


SYSTEMS: dict[str, Callable[[Path, Path], dict[str, Callable]]] = {
    "classification": classification,
    "seq2seq": seq2seq,
    "validation": validation,
    "causal_lm": causal_lm,
    "chat": chat,
}


def measure(name: str, args: argparse.Namespace, folder: Path) -> dict[str, Any]:
    """Train a model; measure predictions in a process that runs in the rendered project."""
    task = "seq2seq" if name == "validation" else name
    project = render(task, folder)
    for part, count, seed in (("train", 3000, 0), ("valid", 100, 1), ("new", args.rows, 2)):
        source = project / "data" / ("train.jsonl" if part == "train" else "valid.jsonl")
        write_rows(source, folder / f"{part}.jsonl", count, seed)
    more = ["--model_id", args.encoder] if args.encoder and task == "classification" else []
    steps = STEPS.get(task, args.steps)
    checkpoint = train(project, folder, *more, f"--max_steps={steps}")
    command = [sys.executable, __file__, "--measure", name, str(checkpoint), "--rounds"]
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
        ours = systems[OURS][0]
        for name, (seconds, equal, share) in systems.items():
            row = [task, name, f"{args.rows / seconds:,.1f}", f"{seconds / ours:.2f}"]
            rows.append([*row, f"{equal:.1%}", f"{share:.0%}" if share else ""])
    head = ["task", "system", "rows per CPU second", f"speed of {OURS}, relative to the system"]
    head += ["equal predictions", "tokens of finished rows"]
    return f"""# Speed of prediction

Written by `python bench/prediction.py`. {"; ".join(f"{k} {v}" for k, v in about.items())}.
{args.rows} rows, medians of {args.rounds} rounds (batch size 1: one run), one thread. Texts are
joined rows of the project's data; the number of joined rows has a log-normal distribution (median
{MEDIAN:.0f}, sigma {SIGMA}). Prompts of causal_lm have {PROMPT} words in the median; those of
chat are conversations of the data, without the last answer. The model for classification is the
encoder given by `--encoder` (default: `tiny`); the others are `tiny` after {args.steps} training
steps (causal_lm: {STEPS["causal_lm"]}), and generate at most {NEW_TOKENS} tokens by greedy search.
validation: loss, generation and scores of seq2seq. Equal predictions: compared with those of a
batch size of 1. Tokens of finished rows: the share of generated tokens that are computed for rows
that have already ended, while other rows of their batch have not.
transformers 5 has no text-to-text pipeline.

{table(*head, rows=rows)}"""


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__.partition("\n")[0],
        formatter_class=argparse.ArgumentDefaultsHelpFormatter,
    )
    parser.add_argument("--rows", type=int, default=200, help="rows to predict")
    parser.add_argument("--rounds", type=int, default=2, help="number of rounds")
    parser.add_argument("--steps", type=int, default=300, help="training steps of seq2seq and chat")
    parser.add_argument(
        "--encoder", help="folder of an encoder for classification, such as all-MiniLM-L6-v2"
    )
    parser.add_argument(
        "--tasks", nargs="+", choices=list(SYSTEMS), default=list(SYSTEMS), help="what to measure"
    )
    parser.add_argument("--write", help="folder for prediction.md")
    parser.add_argument("--measure", nargs=2, help=argparse.SUPPRESS)
    parser.add_argument("--input", type=Path, help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.measure:
        name, checkpoint = args.measure
        systems = SYSTEMS[name](Path(checkpoint), args.input)
        print(json.dumps(compare(systems, args.rounds)))
        return
    os.environ.update(HF_HUB_OFFLINE="1", OMP_NUM_THREADS="1", ACCELERATE_USE_CPU="true")
    results = {}
    for name in args.tasks:
        with tempfile.TemporaryDirectory() as folder:
            results[name] = measure(name, args, Path(folder))
    text = markdown(results, args, environment())
    print(text)
    if args.write:
        Path(args.write, "prediction.md").write_text(text, encoding="utf-8")


if __name__ == "__main__":
    main()
