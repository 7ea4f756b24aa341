"""Run model, scores and checkpoint once, to report errors before the first step."""

import inspect
import math
import tempfile
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import torch
from accelerate.utils import send_to_device
from torch import Tensor

from errors import RunError
from model.interface import Scorer

from .contract import ExampleSet, Task, model_inputs
from .loading import load_model
from .user_code import user_code

SAMPLE = 2  # examples
ROUND_TRIP = 2**28  # bytes; the trial save and load is skipped for larger models


def check_inputs(model: torch.nn.Module, examples: ExampleSet) -> None:
    """Check that `forward` has a parameter for each tensor of a batch.

    Raises:
        RunError: A parameter is missing.
    """
    with user_code("model/dataset.py: the first examples cannot be loaded"):
        inputs = model_inputs(examples.batch(list(range(min(SAMPLE, len(examples))))))
    parameters = inspect.signature(model.forward).parameters
    takes_all = any(p.kind is inspect.Parameter.VAR_KEYWORD for p in parameters.values())
    unknown = [] if takes_all else [name for name in inputs if name not in parameters]
    if unknown:
        raise RunError(
            f"model/modeling.py: Model.forward has no parameter {unknown[0]!r}, which the data set "
            "returns; expected one for each of its tensors"
        )


def check_contract(
    task: Task,
    model: torch.nn.Module,
    examples: ExampleSet,
    scores: Scorer,
    score_names: Iterable[str],
    is_main: bool,
) -> list[str]:
    """Check what `model/` returns; see model/interface.py.

    Args:
        score_names: Scores that `Scores.compute` has to return.
        is_main: Whether this is the main rank. `save_pretrained` writes nothing on another one.

    Returns:
        Lines to print: results that are not exact with this model and this data set.

    Raises:
        RunError: The loss is missing, not a scalar, or not divided by `num_items_in_batch`; a
            score is missing; or a checkpoint of the model cannot be loaded.
    """
    if not hasattr(model, "save_pretrained") or not hasattr(type(model), "from_pretrained"):
        raise RunError(
            "model/modeling.py: Model has no save_pretrained and from_pretrained; expected a "
            "subclass of transformers.PreTrainedModel"
        )
    was_training = model.training
    model.eval()
    batch = examples.batch(list(range(min(SAMPLE, len(examples)))))
    batch = send_to_device(batch, next(model.parameters()).device)
    with torch.no_grad():
        outputs, loss = _loss(task, model, batch, 1)
        if task.divides_by_items:
            _check_division(loss, _loss(task, model, batch, 2)[1])
        if not getattr(scores, "generates", False):
            _check_scores(scores, outputs, batch, score_names)
    model.train(was_training)
    if is_main:
        _check_round_trip(task, model)
    return _inexact(task, examples)


def _loss(task: Task, model: torch.nn.Module, batch: dict, num_items: int) -> tuple[Any, Tensor]:
    with user_code("model/modeling.py: Model.forward fails on the first examples"):
        outputs, losses = task.forward(model, batch, num_items)
    for name, loss in losses.items():
        if not isinstance(loss, Tensor) or loss.ndim != 0:
            shape = tuple(loss.shape) if isinstance(loss, Tensor) else type(loss).__name__
            raise RunError(
                f"model/modeling.py: Model.forward returns a {name} of {shape}; expected a scalar"
            )
    return outputs, losses["loss"]


def _check_division(loss: Tensor, halved: Tensor) -> None:
    expected = loss.item() / 2
    if math.isfinite(expected) and not math.isclose(halved.item(), expected, rel_tol=1e-3):
        raise RunError(
            "model/modeling.py: the loss of Model.forward is not divided by num_items_in_batch "
            f"({loss.item():.4g} for 1, {halved.item():.4g} for 2); expected the sum over the "
            "target items, divided by that number"
        )


def _check_scores(scores: Scorer, outputs: Any, batch: dict, names: Iterable[str]) -> None:
    with user_code("model/metrics.py: Scores fails on the first examples"):
        scores.reset()
        scores.update(outputs, batch)
        found = scores.compute(outputs.loss.item())
        scores.reset()
    twice = found.keys() & {"loss", *(getattr(outputs, "losses", None) or {})}
    if twice:
        raise RunError(
            f"model/metrics.py: Scores.compute returns {sorted(twice)[0]!r}, the name of a loss of "
            "Model.forward; expected another name"
        )
    missing = set(names) - found.keys() - {"loss"}
    if missing:
        raise RunError(
            f"model/metrics.py: Scores.compute returns no {sorted(missing)[0]!r}, which "
            "Scores.directions lists"
        )


def _check_round_trip(task: Task, model: torch.nn.Module) -> None:
    """Save and load the model, if it is small and not saved in stock form."""
    size = sum(parameter.nbytes for parameter in model.parameters())
    if size > ROUND_TRIP or getattr(model, "saves_stock", False):
        return
    with tempfile.TemporaryDirectory() as folder:
        with user_code("model/modeling.py: Model.save_pretrained fails"):
            model.save_pretrained(Path(folder))  # type: ignore[operator]
        try:
            loaded = load_model(task.model_class, folder).state_dict()
        except RunError as error:
            reason = str(error).removeprefix(f"{folder}: ")
            raise RunError(
                f"model/modeling.py: what Model.save_pretrained writes cannot be loaded: {reason}"
            ) from None
    for name, tensor in model.state_dict().items():
        if name not in loaded or not torch.equal(loaded[name].cpu(), tensor.cpu()):
            raise RunError(
                f"model/modeling.py: {name} is not the same after save_pretrained and "
                "from_pretrained; expected Model to restore all its tensors"
            )


def _inexact(task: Task, examples: ExampleSet) -> list[str]:
    lines = []
    if task.couples_examples:
        lines.append(
            "the loss couples the examples of a micro-batch: it depends on --batch_size, and on "
            "the number of processes unless the model gathers from all of them"
        )
    if not task.divides_by_items:
        weight = "target items" if examples.has_num_items else "examples"
        lines.append(
            f"the loss is treated as a mean over each micro-batch, weighted by its {weight}: add a "
            "parameter num_items_in_batch to Model.forward if it is a mean over something else"
        )
    return lines
