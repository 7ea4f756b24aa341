"""Measure the memory for training a full model, and an adapter on a 32-bit or 16-bit base model.

python bench/lora.py [--write FOLDER]

The script renders a project and trains once for each variant. It needs no network and no GPU.
"""

import argparse
import tempfile
from pathlib import Path

from common import environment, table
from scale import spec_of
from speed import run

LLAMA = {  # the size of SmolLM2-135M
    "model_type": "llama",
    "hidden_size": 576,
    "intermediate_size": 1536,
    "num_hidden_layers": 30,
    "num_attention_heads": 9,
    "num_key_value_heads": 3,
    "tie_word_embeddings": True,
}
RANK = 16
# A step has few tokens, so that weights, gradients and optimizer state take most of the memory.
SIZE = {"batch_size": 1, "max_len": 128, "max_steps": 6, "warmup": 1}
FEW = ["--eval_batch_size", "1"]
VARIANTS = {
    "full model, float32": [],
    f"rank {RANK}, base in float32": ["--lora_rank", str(RANK)],
    f"rank {RANK}, base in bfloat16": ["--lora_rank", str(RANK), "--base_dtype", "bfloat16"],
}


def save_weights(base: Path) -> int:
    """Save a base model with random weights; return the number of its parameters."""
    from transformers import AutoConfig, AutoModelForCausalLM

    model = AutoModelForCausalLM.from_config(AutoConfig.from_pretrained(base))
    model.save_pretrained(base)
    return model.num_parameters()


def measure(folder: Path) -> tuple[int, list[list[str]]]:
    """Measure all variants; return the number of parameters and the rows of the table."""
    spec = spec_of("causal_lm", LLAMA, 64, folder / "lora", **SIZE)
    count = save_weights(Path(spec["base"]))
    rows = []
    whole = 0.0
    for name, flags in VARIANTS.items():
        result = run("hf-template", {**spec, "flags": [*FEW, *flags]}, folder / "lora")
        peak = result["peak_bytes"] / 2**20
        whole = whole or peak
        rows.append([name, f"{peak:,.0f}", f"{peak / whole:.2f}"])
    return count, rows


def markdown(count: int, rows: list[list[str]]) -> str:
    versions = environment()
    machine = versions.pop("machine")
    shown = ", ".join(f"{name} {version}" for name, version in versions.items())
    columns = ["trained parameters", "peak memory, MiB", "relative to the full model"]
    return f"""# Memory with an adapter

Written by `python bench/lora.py` with {shown},
on {machine}.

The table has the peak memory of runs with {SIZE["max_steps"]} steps, including checks, validation
and saves. The model is a Llama with {count / 1e6:,.0f} million parameters; a step has one block of
{SIZE["max_len"]} tokens. Python and its libraries take about 500 MiB of the memory.

{table(*columns, rows=rows)}"""


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--write", type=Path, help="folder for lora.md")
    args = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        text = markdown(*measure(Path(folder)))
    print(text)
    if args.write:
        (args.write / "lora.md").write_text(text, encoding="utf-8")


if __name__ == "__main__":
    main()
