"""Export a checkpoint for other tools: with a merged adapter, in another dtype, or as ONNX.

python export.py --output exported --dtype bfloat16
python export.py --output exported --onnx                requires pip install -e '.[onnx]'
"""

import shutil
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from training.command_line import build_export_parser, check_early

if __name__ == "__main__":
    check_early(build_export_parser().parse_args)  # before the imports below, which take seconds

import torch
import transformers
from torch import Tensor, nn
from transformers import PreTrainedTokenizerBase

from errors import RunError, describe
from training.adapter import holds_adapter
from training.contract import Task
from training.launch import run as exit_code_of
from training.loading import load_model, load_tokenizer
from training.packages import require
from training.predictor_config import PREDICTOR_FILE, PredictorConfig

ONNX_PACKAGES = ("onnx", "onnxruntime", "onnxscript")
SAMPLES = ("Do you see it?", "No.")
TOLERANCE = 1e-4  # relative to the largest absolute value of a logit


class Logits(nn.Module):
    """The part of a model that is exported as ONNX: from token ids and attention mask to logits."""

    def __init__(self, model: nn.Module):
        super().__init__()
        self.model = model

    def forward(self, input_ids: Tensor, attention_mask: Tensor) -> Tensor:
        return self.model(input_ids=input_ids, attention_mask=attention_mask).logits


def export_onnx(model: Any, tokenizer: PreTrainedTokenizerBase, file: Path) -> None:
    """Export a model as ONNX, for any batch size and length; compare the logits of model and file.

    Raises:
        RunError: torch cannot export the model, or the logits differ.
    """
    import onnxruntime

    inputs = tokenizer(list(SAMPLES), padding=True, return_tensors="pt")
    names = ["input_ids", "attention_mask"]
    sizes = {0: torch.export.Dim("batch"), 1: torch.export.Dim("length")}
    try:
        torch.onnx.export(
            Logits(model).eval(),
            tuple(inputs[name] for name in names),
            file,
            input_names=names,
            output_names=["logits"],
            dynamic_shapes=dict.fromkeys(names, sizes),
            dynamo=True,
            verbose=False,
        )
    except Exception as error:  # torch raises errors of many types if it cannot export a model
        name = type(model).__name__
        raise RunError(f"--onnx: torch cannot export {name} ({describe(error)})") from error
    session = onnxruntime.InferenceSession(file)
    for texts in (SAMPLES, SAMPLES[1:], [" ".join(SAMPLES)] * 3):
        inputs = tokenizer(list(texts), padding=True, return_tensors="pt")
        with torch.no_grad():
            expected = Logits(model)(*(inputs[name] for name in names))
        (found,) = session.run(["logits"], {name: inputs[name].numpy() for name in names})
        difference = (expected - torch.from_numpy(found)).abs().max()
        if difference > TOLERANCE * expected.abs().max():
            raise RunError(f"{file}: the logits differ from the model's by {difference:.2g}")


def check_onnx(model: Any, tokenizer: PreTrainedTokenizerBase | None) -> None:
    """Check that a model can be exported as ONNX.

    Raises:
        RunError: A package is missing, the model generates text, or the task has no tokenizer.
    """
    for package in ONNX_PACKAGES:
        require(package, "onnx", "--onnx")
    if model.can_generate():
        raise RunError("--onnx: the model generates text; expected a classifier")
    if tokenizer is None:
        raise RunError("--onnx: the task has no tokenizer; expected a classifier of texts")


def merge(model: Any, inputs: dict[str, Tensor]) -> str:
    """Merge the adapter of a model into its base model; compare the logits before and after.

    Returns:
        A line with the largest difference of the logits.

    Raises:
        RunError: The logits differ, or the merged model cannot be saved in stock form (see
            `Wrapper`).
    """
    expected = _logits(model, inputs)
    model.merge_lora()
    what = "the logits of the merged model differ from those with the adapter"
    difference = _difference(_logits(model, inputs), expected, what)
    line = model.choose_form()
    if not model.saves_stock:
        raise RunError(
            f"the merged model cannot be saved in stock form ({line}); expected a Model that "
            "computes the same logits as its base model"
        )
    return f"{what} by at most {difference:.2g}"


def check_merged(model: Any, inputs: dict[str, Tensor], output: Path) -> None:
    """Load a merged checkpoint without `model/`; compare its logits with those of the merged model.

    Args:
        output: Folder of the checkpoint. If an error is raised, the folder is removed.

    Raises:
        RunError: The logits differ, or the checkpoint cannot be loaded.
    """
    try:
        stock = model.auto_class.from_pretrained(output, dtype=torch.float32).eval()
        what = f"{output}: the logits differ from those of the merged model"
        _difference(_logits(stock, inputs), _logits(model.float(), inputs), what)
    except Exception as error:
        shutil.rmtree(output)
        if isinstance(error, RunError):
            raise
        raise RunError(f"{output}: cannot be loaded ({describe(error)})") from error


def convert(model: Any, dtype: str) -> None:
    """Convert all floating-point weights and buffers to a dtype.

    Raises:
        RunError: A value is too large for the dtype.
    """
    finite = _finite_tensors(model)
    model.to(getattr(torch, dtype))
    if too_large := finite - _finite_tensors(model):
        name = min(too_large)
        raise RunError(
            f"--dtype {dtype}: {name} has values out of the range of {dtype}; expected bfloat16"
        )


def _finite_tensors(model: Any) -> set[str]:
    return {name for name, tensor in model.state_dict().items() if tensor.isfinite().all()}


def sample_inputs(model: Any, tokenizer: PreTrainedTokenizerBase | None) -> dict[str, Tensor]:
    """Return inputs for comparing logits.

    The inputs are the tokens of sample texts or, without a tokenizer, consecutive token ids.
    """
    if tokenizer is None:
        ids = torch.arange(3, 35).remainder(model.config.vocab_size).view(2, 16)
        batch = {"input_ids": ids, "attention_mask": torch.ones_like(ids)}
    else:
        batch = dict(tokenizer(list(SAMPLES), padding=True, return_tensors="pt"))
    return model.without_labels({**batch, "labels": batch["input_ids"]})


@torch.no_grad()
def _logits(model: Any, inputs: dict[str, Tensor]) -> Tensor:
    return model(**inputs).logits


def _difference(logits: Tensor, expected: Tensor, what: str) -> float:
    difference = (logits - expected).abs().max()
    if not difference <= TOLERANCE * expected.abs().max():
        raise RunError(f"{what} by {difference:.2g}")
    return float(difference)


def next_commands(model: Any, output: Path) -> Iterator[str]:
    """Yield lines to print, if any: how to load a custom checkpoint, or commands of other tools."""
    if not getattr(model, "saves_stock", False):
        yield (
            f"{output} is not in stock form: load it with model/ or, if it contains .py files, "
            "with trust_remote_code=True"
        )
    elif model.can_generate() and model.config.is_encoder_decoder:
        yield f"ct2-transformers-converter --model {output} --output_dir {output}-ct2"
    elif model.can_generate():
        yield f"vllm serve {output}"
        yield f"python llama.cpp/convert_hf_to_gguf.py {output}"
        yield f"lm_eval --model hf --model_args pretrained={output} --tasks wikitext"


def main(argv: list[str] | None = None) -> None:
    args = build_export_parser().parse_args(argv)
    task = Task()
    output = Path(args.output).expanduser()
    if output.is_file() or (output.exists() and any(output.iterdir())):
        raise RunError(f"--output {output}: is not an empty folder; expected a new or empty one")
    if args.onnx and args.dtype != "float32":
        raise RunError(
            f"--onnx: model.onnx is written in float32; expected no --dtype {args.dtype}"
        )
    transformers.logging.set_verbosity_error()
    transformers.logging.disable_progress_bar()
    tokenizer = load_tokenizer(args.checkpoint) if task.needs_tokenizer else None
    settings = PredictorConfig.read(args.checkpoint)
    model = load_model(task.model_class, args.checkpoint).eval()
    if args.onnx:
        check_onnx(model, tokenizer)
    merged = ""
    if holds_adapter(model):
        inputs = sample_inputs(model.float(), tokenizer)
        merged = merge(model, inputs)
    if hasattr(model, "choose_form"):
        print(model.choose_form())  # before the conversion, to compare the logits in float32
    convert(model, args.dtype)
    try:
        model.save_pretrained(output)
        if tokenizer is not None:
            tokenizer.save_pretrained(output)
        if settings is not None:
            (output / PREDICTOR_FILE).write_text(settings.to_text(), encoding="utf-8")
    except Exception as error:  # errors of the disk, of safetensors or of the user's code
        raise RunError(f"--output {output}: not saved ({describe(error)})") from error
    if merged:
        check_merged(model, inputs, output)
        print(merged)
    print(f"{output}: {model.num_parameters():,} parameters in {args.dtype}")
    if args.onnx:
        export_onnx(model, tokenizer, output / "model.onnx")
        print(f"{output / 'model.onnx'}: its logits agree with those of the model")
    for line in next_commands(model, output):
        print(line)


if __name__ == "__main__":
    sys.exit(exit_code_of(main))
