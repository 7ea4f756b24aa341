"""Write README.md of a checkpoint: the model card."""

import json
import math
from pathlib import Path
from typing import Any

from huggingface_hub import EvalResult, ModelCardData
from transformers import AutoConfig, PreTrainedModel

from model.adapter import adapter_config
from model.revision import split_revision
from training.adapter import holds_adapter
from training.state import TrainState

# Arguments that may be paths on this machine; the model card does not list them as arguments.
PLACES = ("config", "model_id", "outdir", "train_input", "valid_input", "restore_dir")
CARD = """---
{metadata}
---

# {name}

{what} on `{train_input}`: {step:,} steps with a global batch of {global_batch_size}.

## Load the model

{load}

## Scores

On `{valid_input}`, after {epoch}:

| score | value |
|---|---|
{scores}
{table}{picture}
## Arguments

| argument | value |
|---|---|
{arguments}
"""
PICTURE = """
![losses and learning rate](loss.png)
"""

WHOLE = """```py
from transformers import {auto_class}, AutoTokenizer

model = {auto_class}.from_pretrained("path/to/this"{arguments})
tokenizer = AutoTokenizer.from_pretrained("path/to/this")
```"""
ADAPTER = """```py
from peft import {auto_class}  # pip install peft
from transformers import {names}

model = {auto_class}.from_pretrained("path/to/this"{arguments})
tokenizer = AutoTokenizer.from_pretrained("path/to/this")
{generation}```

This code also loads the base model. base_config.json has the configuration of the base model during
training."""

GENERATION = """model.generation_config = GenerationConfig.from_pretrained("path/to/this")
"""


def write_card(
    folder: Path,
    state: TrainState,
    args: dict,
    model: PreTrainedModel,
    table: dict[str, dict[str, float]],
) -> None:
    """Write README.md into the folder of a saved model. README.md shows loss.png if there is one.

    Args:
        args: Arguments of the run.
        model: The saved model. Its `config.pipeline_tag`, if any, is the name of the task on the
            Hub.
        table: Scores by row and column: see `Scorer.table`.
    """
    file = folder / "config.json"
    config = json.loads(file.read_text(encoding="utf-8")) if file.exists() else {}
    best = state.best
    base = str(args.get("model_id", "random weights"))
    is_local = Path(base).expanduser().exists()
    scores = {name: value for name, value in state.best_scores.items() if _is_finite(value)}
    valid_input = _names(args.get("valid_input"))
    is_custom = "auto_map" in config
    is_adapter = holds_adapter(model)
    shown = Path(base).name if is_local else base
    pipeline_tag = getattr(getattr(model, "config", None), "pipeline_tag", None)
    metadata = ModelCardData(
        base_model=None if is_local else split_revision(base)[0],
        pipeline_tag=pipeline_tag,
        library_name="peft" if is_adapter else "transformers",
        tags=["lora"] if is_adapter else ["custom_code"] if is_custom else None,
        model_name=Path.cwd().name,
        eval_results=[
            EvalResult(
                task_type=pipeline_tag or "other",
                dataset_type="text",
                dataset_name=name.rpartition("/")[0] or valid_input,
                dataset_config=name.rpartition("/")[0] or None,  # the Hub groups results by this
                metric_type=name.rpartition("/")[2],
                metric_value=value,
            )
            for name, value in scores.items()
        ],
    )
    card = CARD.format(
        metadata=metadata.to_yaml(),
        name=Path.cwd().name,
        what=f"A LoRA adapter for `{shown}`, trained" if is_adapter else f"Trained from `{shown}`",
        train_input=_names(args.get("train_input")),
        valid_input=valid_input,
        step=state.step,
        global_batch_size=state.global_batch_size,
        load=_load_adapter(model) if is_adapter else _load_whole(config, model),
        epoch=best.get("epoch", "no validation"),
        scores=_rows({name: f"{value:.4g}" for name, value in scores.items()}),
        table=_table(table),
        picture=PICTURE if (folder / "loss.png").is_file() else "",
        arguments=_rows({name: v for name, v in args.items() if name not in PLACES}),
    )
    (folder / "README.md").write_text(card, encoding="utf-8")


def auto_class(config: dict, model: PreTrainedModel) -> str:
    """Return the name of the Auto class that opens a checkpoint with this config.json."""
    registered = config.get("auto_map", {}).keys() - {"AutoConfig", "AutoModel"}
    if registered:
        return sorted(registered)[0]
    return getattr(getattr(model, "auto_class", None), "__name__", "AutoModel")


def _load_whole(config: dict, model: PreTrainedModel) -> str:
    trust = ", trust_remote_code=True" if "auto_map" in config else ""
    return WHOLE.format(auto_class=auto_class(config, model), arguments=trust)


def _load_adapter(model: Any) -> str:
    """Return the code for loading an adapter.

    PEFT loads neither the number of labels nor the padding token nor generation_config.json. The
    returned code sets the number of labels and the padding token if they differ from those of the
    base model, and loads generation_config.json if the model generates text.
    """
    trained = model.base_model.config
    adapter = adapter_config(model.base_model)
    hub = {} if adapter.revision is None else {"revision": adapter.revision}
    before = AutoConfig.from_pretrained(
        adapter.base_model_name_or_path, trust_remote_code=False, **hub
    )
    names = ("num_labels", "pad_token_id")
    values = {name: getattr(trained, name) for name in names}
    changed = {name: v for name, v in values.items() if v != getattr(before, name)}
    arguments = "".join(f", {name}={value}" for name, value in changed.items())
    generates = model.can_generate()
    return ADAPTER.format(
        auto_class=auto_class({}, model).replace("AutoModel", "AutoPeftModel", 1),
        names="AutoTokenizer, GenerationConfig" if generates else "AutoTokenizer",
        arguments=arguments,
        generation=GENERATION if generates else "",
    )


def _is_finite(value: Any) -> bool:
    return isinstance(value, (int, float)) and math.isfinite(value)


def _names(source: str | list[str] | None) -> str:
    if source is None:
        return "held-out training data"
    parts = [source] if isinstance(source, str) else source or []
    named = (part.rpartition("=") for part in parts)
    return ", ".join(f"{name}{mark}{Path(path).name}" for name, mark, path in named)


def _rows(values: dict) -> str:
    return "\n".join(_row([name, value]) for name, value in values.items())


def _table(rows: dict[str, dict[str, float]]) -> str:
    """Format scores as a Markdown table; empty if there are no rows."""
    if not rows:
        return ""
    columns = list(next(iter(rows.values())))
    lines = [_row(["", *columns]), "|---" * (1 + len(columns)) + "|"]
    for name, row in rows.items():
        cells = [f"{v:.3f}" if isinstance(v, float) else v for v in row.values()]
        lines.append(_row([name, *cells]))
    return "\n" + "\n".join(lines) + "\n"


def _row(cells: list) -> str:
    return "| " + " | ".join(str(cell).replace("|", r"\|") for cell in cells) + " |"
