"""README.md of a checkpoint: the model card."""

import json
from pathlib import Path

from huggingface_hub import EvalResult, ModelCardData

from training.state import TrainState

# Arguments that say where things are on this machine: no business of those who read a card.
PLACES = ("config", "model_id", "outdir", "train_input", "valid_input")
CARD = """---
{metadata}
---

# {name}

Trained from `{base}` on `{train_input}`: {step:,} steps of {global_batch_size} examples each.

## How to load it

```py
from transformers import {auto_class}, AutoTokenizer

model = {auto_class}.from_pretrained("path/to/this", trust_remote_code=True)
tokenizer = AutoTokenizer.from_pretrained("path/to/this")
```

## Scores

On `{valid_input}`, after {epoch}:

| score | value |
|---|---|
{scores}

![losses and learning rate](loss.png)

## Arguments

| argument | value |
|---|---|
{arguments}
"""


def write_card(folder: Path, state: TrainState, args: dict) -> None:
    """Write README.md into a folder that a model has been saved in.

    Args:
        pipeline_tag: What the Hub calls the task.
    """
    config = json.loads((folder / "config.json").read_text(encoding="utf-8"))
    auto_class = next(name for name in config["auto_map"] if name != "AutoConfig")
    pipeline_tag = None
    base = config["base_model_id"]
    is_local = Path(base).exists()
    valid_input = _names(args["valid_input"])
    scores = {name: value for name, value in state.best.items() if name not in ("epoch", "count")}
    metadata = ModelCardData(
        base_model=None if is_local else base,
        pipeline_tag=pipeline_tag,
        library_name="transformers",
        tags=["custom_code"],
        model_name=Path.cwd().name,
        eval_results=[
            EvalResult(
                task_type=pipeline_tag or "other",
                dataset_type="text",
                dataset_name=valid_input,
                metric_type=name,
                metric_value=value,
            )
            for name, value in scores.items()
        ],
    )
    card = CARD.format(
        metadata=metadata.to_yaml(),
        name=Path.cwd().name,
        base=Path(base).name if is_local else base,
        train_input=_names(args["train_input"]),
        valid_input=valid_input,
        step=state.step,
        global_batch_size=state.global_batch_size,
        auto_class=auto_class,
        epoch=state.best["epoch"],
        scores=_rows({name: f"{value:.4g}" for name, value in scores.items()}),
        arguments=_rows({name: v for name, v in args.items() if name not in PLACES}),
    )
    (folder / "README.md").write_text(card, encoding="utf-8")


def _names(source: str | list[str]) -> str:
    return ", ".join(Path(part).name for part in ([source] if isinstance(source, str) else source))


def _rows(values: dict) -> str:
    cells = ((name, str(value).replace("|", r"\|")) for name, value in values.items())
    return "\n".join(f"| {name} | {value} |" for name, value in cells)
