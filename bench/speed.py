"""Measure the speed of training with this template, with other trainers, and with a bare loop.

python bench/speed.py [--rounds 3] [--device cuda] [--write FOLDER]

The script renders projects for three tasks. Each project and the other systems train on the same
texts, alternately, so that other load on the machine affects all systems. Each run is a separate
process. The script needs no network.
"""

import argparse
import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import numpy as np
from common import environment, render, table

SYSTEMS = ["hf-template", "Trainer", "Trainer, tuned", "Accelerate's example", "limit"]
HERE = Path(__file__).parent
VOCABULARY = {"classification": 8000, "seq2seq": 8000, "causal_lm": 50_000}
BERT = {
    "model_type": "bert",
    "hidden_size": 256,
    "num_hidden_layers": 4,
    "num_attention_heads": 4,
    "intermediate_size": 1024,
    "max_position_embeddings": 512,
}
BART = {
    "model_type": "bart",
    "d_model": 256,
    "encoder_layers": 2,
    "decoder_layers": 2,
    "encoder_attention_heads": 4,
    "decoder_attention_heads": 4,
    "encoder_ffn_dim": 1024,
    "decoder_ffn_dim": 1024,
    "max_position_embeddings": 1024,
    "decoder_start_token_id": 1,
    "forced_eos_token_id": None,
}
GPT2 = {"model_type": "gpt2", "n_embd": 256, "n_layer": 4, "n_head": 4, "n_positions": 1024}
BATCHES = 640  # batches in the data of classification and seq2seq; a run uses `max_steps`
VARYING = {"batch_size": 32, "max_len": 512, "texts": 32 * BATCHES, "sampling": "group_by_length"}
# These systems are several times slower than the others: one round is enough.
VARYING["in_first_round_only"] = ["Trainer", "Accelerate's example"]
BLOCKS = {"sampling": "random", "in_first_round_only": []}
CPU: dict[str, dict] = {
    "classification": {**VARYING, "config": BERT, "has_targets": False, "max_steps": 50},
    "seq2seq": {**VARYING, "config": BART, "has_targets": True, "max_steps": 50},
    "causal_lm": {
        **BLOCKS,
        "config": GPT2,
        "has_targets": False,
        "batch_size": 8,
        "max_len": 256,
        "max_steps": 12,
        "texts": 13 * 8 * 256 // 37,
    },
}
BASE_BERT = {"hidden_size": 768, "num_hidden_layers": 12, "num_attention_heads": 12}
BASE_BERT["intermediate_size"] = 3072
BASE_BART = {"d_model": 768, "encoder_layers": 6, "decoder_layers": 6}
BASE_BART |= {"encoder_attention_heads": 12, "decoder_attention_heads": 12}
BASE_BART |= {"encoder_ffn_dim": 3072, "decoder_ffn_dim": 3072}
GPT2_SMALL = {"n_embd": 768, "n_layer": 12, "n_head": 12}
GPU: dict[str, dict] = {
    "classification": {**CPU["classification"], "config": {**BERT, **BASE_BERT}, "max_steps": 300},
    "seq2seq": {**CPU["seq2seq"], "config": {**BART, **BASE_BART}, "max_steps": 300},
    "causal_lm": {
        **CPU["causal_lm"],
        "config": {**GPT2, **GPT2_SMALL},
        "batch_size": 16,
        "max_len": 1024,
        "max_steps": 60,
        "texts": 61 * 16 * 1024 // 37,
    },
}
MEDIAN, SIGMA = 37, 0.8  # log-normal distribution of the number of tokens in a text
WARMUP = {"cpu": 0, "cuda": 3}  # forward passes that are not measured


def write_base(task: str, config: dict, folder: Path) -> None:
    """Write the configuration of a base model, and a tokenizer with one token per word."""
    from tokenizers import Tokenizer, models, pre_tokenizers
    from transformers import AutoConfig, PreTrainedTokenizerFast

    words = [f"w{number}" for number in range(VOCABULARY[task] - 3)]
    names = {"pad_token": "[PAD]", "eos_token": "[EOS]", "unk_token": "[UNK]"}
    vocabulary = {word: index for index, word in enumerate([*names.values(), *words])}
    tokenizer = Tokenizer(models.WordLevel(vocabulary, unk_token="[UNK]"))
    tokenizer.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    PreTrainedTokenizerFast(tokenizer_object=tokenizer, **names).save_pretrained(folder)
    options = {"vocab_size": VOCABULARY[task], "pad_token_id": 0, "eos_token_id": 1}
    AutoConfig.for_model(**config, **options).save_pretrained(folder)


def write_texts(task: str, count: int, path: Path, seed: int = 0) -> None:
    """Write texts of random words. Targets for seq2seq are about as long as their sources."""
    rng = np.random.default_rng(seed)
    lengths = np.clip(rng.lognormal(np.log(MEDIAN), SIGMA, count), 3, 510).astype(int)
    ratios = rng.lognormal(0, 0.2, count)

    def text(length: int) -> str:
        return " ".join(f"w{number}" for number in rng.integers(0, VOCABULARY[task] - 3, length))

    with path.open("w", encoding="utf-8") as file:
        for length, ratio in zip(lengths, ratios, strict=True):
            source = text(length)
            target = text(int(np.clip(length * ratio, 3, 510)))
            row = {"text": source, "label": int(length) % 2, "source": source, "target": target}
            file.write(json.dumps(row) + "\n")


def run(system: str, spec: dict, folder: Path) -> dict[str, float]:
    """Train once in a separate process; return the measurements."""
    spec = {**spec, "outdir": tempfile.mkdtemp(dir=folder) + "/run"}
    (folder / "spec.json").write_text(json.dumps(spec), encoding="utf-8")
    variables = {"HF_HUB_OFFLINE": "1", "HF_HOME": str(folder / "cache")}
    variables |= spec.get("variables", {})
    if spec["device"] == "cpu":
        variables["ACCELERATE_USE_CPU"] = "true"
    else:
        variables["ACCELERATE_MIXED_PRECISION"] = "bf16"
    done = subprocess.run(
        [sys.executable, str(HERE / "one_run.py"), system, str(folder / "spec.json")],
        env={**os.environ, **variables, "BENCH_BEGAN": str(time.time())},
        capture_output=True,
        text=True,
    )
    if done.returncode:
        raise RuntimeError(f"{system}: {done.stderr[-3000:]}")
    return json.loads(done.stdout.splitlines()[-1])


def measure(task: str, size: dict, args: argparse.Namespace, folder: Path) -> dict[str, Any]:
    """Run all systems alternately; return the medians over the rounds."""
    folder.mkdir()
    write_base(task, size["config"], folder / "base")
    write_texts(task, size["texts"], folder / "train.jsonl")
    write_texts(task, 32, folder / "valid.jsonl", seed=1)
    spec = {
        **size,
        "task": task,
        "project": str(render(task, folder)),
        "base": str(folder / "base"),
        "train_input": str(folder / "train.jsonl"),
        "valid_input": str(folder / "valid.jsonl"),
        "lr": 1e-4,
        "warmup": WARMUP[args.device],
        "workers": args.workers,
        "device": args.device,
        "flags": args.flags.split(),
    }
    rounds: dict[str, list[dict]] = {system: [] for system in SYSTEMS}
    for number in range(args.rounds):
        for system in SYSTEMS:
            if number and system in size["in_first_round_only"]:
                continue
            rounds[system].append(run(system, {**spec, "seed": number}, folder))
            print(task, number, system, rounds[system][-1], file=sys.stderr)
    return {
        system: {name: statistics.median(result[name] for result in results) for name in results[0]}
        for system, results in rounds.items()
    }


def markdown(results: dict[str, Any], args: argparse.Namespace, about: dict[str, str]) -> str:
    rows = []
    for task, systems in results.items():
        best = systems["hf-template"]["tokens_per_second"]
        for system, r in systems.items():
            rows.append(
                [
                    task,
                    system,
                    f"{r['tokens_per_second']:,.0f}",
                    f"{best / r['tokens_per_second']:.2f}",
                    f"{r['padding']:.1%}",
                    f"{r['peak_bytes'] / 2**20:,.0f}",
                    f"{r['first_step_seconds']:.1f}",
                ]
            )
    columns = ["task", "system", "real tokens/s", "speed of hf-template, relative to the system"]
    columns += ["padding", "peak memory, MiB", "start to first step, s"]
    return f"""# Speed of training

Written by `python bench/speed.py`. {"; ".join(f"{k} {v}" for k, v in about.items())}. Device:
{args.device}; medians of {args.rounds} rounds. Each round runs the systems one after another. For
classification and seq2seq, Trainer and Accelerate's example run in the first round only.

The texts are random words; the number of words in a text has a log-normal distribution (median
{MEDIAN}, sigma {SIGMA}). On a CPU, the models are a 4-layer BERT and a 2 + 2-layer BART (width 256,
vocabulary 8,000, batches of 32 texts), and a 4-layer GPT-2 (vocabulary 50,000, batches of 8 blocks
of 256 tokens); on a GPU, they are BERT-base, BART-base and GPT-2 124M. Real tokens do not include
padding. The time to the first step of hf-template and "limit" is that of a start with cached
tokens; the other systems tokenize the texts in each run. "limit" is a bare loop (forward,
backward, fused optimizer step) on the template's batches, which are prepared in advance. The tuned
Trainer has fused AdamW, {args.workers} loader process(es) and, except for causal_lm,
`group_by_length`.

{table(*columns, rows=rows)}"""


def draw(results: dict[str, Any], path: Path) -> None:
    """Draw bars of real tokens per second, relative to those of Trainer."""
    import matplotlib

    matplotlib.use("svg")
    from matplotlib import pyplot

    figure, axes = pyplot.subplots(figsize=(8, 3.2), layout="constrained")
    width = 0.8 / len(SYSTEMS)
    colours = ["#d95f02", "#a6cee3", "#1f78b4", "#b2df8a", "#bbbbbb"]
    for number, (system, colour) in enumerate(zip(SYSTEMS, colours, strict=True)):
        rates = [
            systems[system]["tokens_per_second"] / systems["Trainer"]["tokens_per_second"]
            for systems in results.values()
        ]
        places = np.arange(len(rates)) + number * width
        bars = axes.bar(places, rates, width * 0.92, label=system, color=colour)
        axes.bar_label(bars, fmt="%.2f", fontsize=7)
    axes.set_xticks(np.arange(len(results)) + 2 * width, list(results))
    axes.set_ylabel("real tokens per second,\nas a multiple of Trainer's")
    axes.spines[["top", "right"]].set_visible(False)
    figure.legend(frameon=False, fontsize=8, ncols=5, loc="outside upper center")
    figure.savefig(path, metadata={"Date": None})


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--rounds", type=int, default=3, help="number of rounds")
    parser.add_argument("--task", choices=list(CPU), action="append", help="measure only this task")
    parser.add_argument("--device", choices=["cpu", "cuda"], default="cpu", help="device")
    parser.add_argument(
        "--workers", type=int, default=1, help="loader processes of the tuned Trainer"
    )
    parser.add_argument("--flags", default="", help="further arguments of the template's train.py")
    parser.add_argument("--write", type=Path, help="folder for speed.md, speed.json and speed.svg")
    args = parser.parse_args()
    sizes = GPU if args.device == "cuda" else CPU
    with tempfile.TemporaryDirectory() as folder:
        results = {
            task: measure(task, sizes[task], args, Path(folder) / task) for task in args.task or CPU
        }
    about = environment()
    kept = args.write / "speed.json" if args.write else Path()
    if args.task and kept.is_file():  # keep the results of tasks measured earlier
        results = json.loads(kept.read_text(encoding="utf-8"))["tasks"] | results
        results = {task: results[task] for task in CPU if task in results}
    text = markdown(results, args, about)
    print(text)
    if args.write:
        (args.write / "speed.md").write_text(text, encoding="utf-8")
        report = {"environment": about, "rounds": args.rounds, "tasks": results}
        (args.write / "speed.json").write_text(json.dumps(report, indent=2) + "\n", "utf-8")
        draw(results, args.write / "speed.svg")


if __name__ == "__main__":
    main()
