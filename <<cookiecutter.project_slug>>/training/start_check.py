"""Try the model, a save, the scores and Predictor, to find errors before the first step."""

import copy
import inspect
import json
import math
import tempfile
from collections.abc import Iterable
from contextlib import nullcontext
from pathlib import Path
from typing import Any

import torch
from accelerate.utils import send_to_device
from torch import Tensor
from transformers import PreTrainedTokenizerBase

from errors import DataError, RunError
from model.interface import Scorer, TaskPredictor
from reading.identity import unchanged
from reading.tables import read_first_row

from .contract import (
    ExampleSet,
    Task,
    accepts_weights,
    chosen_options,
    defaults,
    model_inputs,
    predictor_input,
    scores_table,
)
from .loading import load_model
from .model_check import probing
from .user_code import user_code

SAMPLE = 2  # maximum number of examples in a batch for the checks
# Size of all parameters in bytes. For larger models, skip the trial save and load, generation and
# prediction.
SMALL = 2**28


def check_inputs(model: torch.nn.Module, examples: ExampleSet) -> None:
    """Check that `forward` has a parameter for each tensor of a batch.

    Raises:
        RunError: A parameter is missing, or the first examples cannot be loaded.
    """
    with user_code("model/dataset.py: the first examples cannot be loaded"):
        inputs = model_inputs(examples.batch(list(range(min(SAMPLE, len(examples))))))
    parameters = inspect.signature(model.forward).parameters
    takes_all = any(p.kind is inspect.Parameter.VAR_KEYWORD for p in parameters.values())
    unknown = [] if takes_all else [name for name in inputs if name not in parameters]
    if unknown:
        raise RunError(
            f"model/modeling.py: Model.forward has no parameter {unknown[0]!r}, which the data set "
            "returns; expected a parameter for each tensor of the data set"
        )


def check_contract(
    task: Task,
    model: torch.nn.Module,
    examples: ExampleSet,
    is_main: bool,
) -> list[str]:
    """Check the loss and the checkpoint of a model; see model/interface.py.

    Args:
        is_main: Whether this is the main rank. The other ranks do not save and load the model.

    Returns:
        Lines to print if the loss may depend on how a global batch is split.

    Raises:
        RunError: `save_pretrained` or `from_pretrained` is missing; the first examples cannot be
            loaded; `forward` fails; a loss is missing, not a scalar, or not divided by
            `num_items_in_batch`; or a checkpoint of the model cannot be saved or loaded, or does
            not restore all tensors.
    """
    if not hasattr(model, "save_pretrained") or not hasattr(type(model), "from_pretrained"):
        raise RunError(
            "model/modeling.py: Model lacks save_pretrained or from_pretrained; expected a "
            "subclass of transformers.PreTrainedModel"
        )
    with probing(model):
        batch = _first_batch(model, examples)
        loss = _loss(task, model, batch, 1)[1]
        if task.divides_by_items:
            _check_division(loss, _loss(task, model, batch, 2)[1])
    if is_main:
        _check_round_trip(task, model)
    return _inexact(task, examples)


def check_scores(
    task: Task,
    model: torch.nn.Module,
    examples: ExampleSet,
    scores: Scorer,
    names: Iterable[str],
    is_main: bool,
) -> None:
    """Compute the scores of the first validation examples; on the main rank, call `Scores.save`.

    Skip a large model if the scores generate text.

    Args:
        names: Names of the scores that `Scores.compute` has to return; "loss" is ignored.

    Raises:
        RunError: The examples cannot be loaded; the model fails; or Scores fails, lacks one of the
            names, uses the name of a loss, or returns a value that is not a number.
    """
    if getattr(scores, "generates", False) and not _is_small(model):
        return
    with probing(model), user_code("model/metrics.py: Scores fails on the first examples"):
        batch = _first_batch(model, examples)
        outputs, loss = _loss(task, model, batch, 1)
        scores.reset()
        scores.update(outputs, batch)
        found = dict(scores.compute(loss.item()))
        json.dumps(chosen_options(scores))
        if is_main:
            scores_table(scores)
            with tempfile.TemporaryDirectory() as folder:
                scores.save(Path(folder))
        scores.reset()
    if twice := found.keys() & {"loss", *(getattr(outputs, "losses", None) or {})}:
        raise RunError(
            f"model/metrics.py: Scores.compute returns {sorted(twice)[0]!r}, the name of a loss of "
            "Model.forward; expected another name"
        )
    if missing := set(names) - found.keys() - {"loss"}:
        raise RunError(
            f"model/metrics.py: Scores.compute returns no {sorted(missing)[0]!r}, which "
            "Scores.directions lists"
        )
    for name, value in found.items():
        if not isinstance(value, (int, float)):
            raise RunError(
                f"model/metrics.py: Scores.compute returns a {type(value).__name__} as {name!r}; "
                "expected a number, such as value.item()"
            )


def check_prediction(
    task: Task,
    model: torch.nn.Module,
    tokenizer: PreTrainedTokenizerBase | None,
    max_len: int,
    schema: dict[str, Any],
    source: str | list[str],
) -> list[str]:
    """Predict the first row of a source, as predict.py does.

    Skip a large model, and a task without a Predictor.

    Returns:
        A line to print if the row cannot be read, for example because a column is missing.

    Raises:
        RunError: Predictor fails, or does not return a prediction.
    """
    if task.predictor_class is None or not _is_small(model):
        return []
    with probing(model), nullcontext() if tokenizer is None else unchanged(tokenizer):
        options = defaults(task.predict_options)
        predictor = task.build_predictor(model, tokenizer, max_len, schema, options)
        try:
            row = _first_row(predictor, source)
        except DataError as error:
            return [f"model/prediction.py: Predictor was not tried: {error}"]
        with user_code("model/prediction.py: Predictor fails on the first row"):
            found = predictor([predictor_input(row)])
            json.dumps(found)
    if not (isinstance(found, list) and len(found) == 1 and "prediction" in found[0]):
        raise RunError(
            f"model/prediction.py: Predictor returns {str(found)[:80]} for one row; expected a "
            "list of one dict with `prediction`"
        )
    return []


def _first_row(predictor: TaskPredictor, source: str | list[str]) -> dict[str, Any]:
    columns = predictor.columns
    if not hasattr(predictor, "read"):
        lists = columns if getattr(predictor, "takes_lists", False) else []
        return read_first_row(source, columns, lists)
    with user_code("model/prediction.py: Predictor.read fails"):
        row = next(iter(predictor.read(source)))
        return {name: row[name] for name in columns}


def _first_batch(model: torch.nn.Module, examples: ExampleSet) -> dict[str, Any]:
    with user_code("model/dataset.py: the first examples cannot be loaded"):
        batch = examples.batch(list(range(min(SAMPLE, len(examples)))))
    return send_to_device(batch, next(model.parameters()).device)


def _loss(task: Task, model: torch.nn.Module, batch: dict, num_items: float) -> tuple[Any, Tensor]:
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


def _check_round_trip(task: Task, model: torch.nn.Module) -> None:
    """Save and load a small model, and compare the tensors before and after.

    Skip a model that is saved in stock form (see `model.base.Wrapper`).
    """
    if not _is_small(model) or getattr(model, "saves_stock", False):
        return
    save: Any = model.save_pretrained
    own = model.state_dict()
    saved = own
    options: dict[str, Any] = {}
    if accepts_weights(model):
        saved = _other_weights(model)
        options["state_dict"] = dict(saved)
    with tempfile.TemporaryDirectory() as folder:
        with user_code("model/modeling.py: Model.save_pretrained fails"):
            save(Path(folder), **options)
        try:
            loaded = load_model(task.model_class, folder).state_dict()
        except RunError as error:
            reason = str(error).removeprefix(f"{folder}: ")
            raise RunError(
                "model/modeling.py: the checkpoint of Model.save_pretrained cannot be loaded: "
                f"{reason}"
            ) from None
    for name, tensor in saved.items():
        if name in loaded and torch.equal(loaded[name].cpu(), tensor.cpu()):
            continue
        if name in loaded and torch.equal(loaded[name].cpu(), own[name].cpu()):
            raise RunError(
                f"model/modeling.py: save_pretrained saves the model's own {name}, not that of its "
                "argument state_dict; expected the tensors of state_dict, or no parameter named "
                "state_dict"
            )
        raise RunError(
            f"model/modeling.py: {name} is not the same after save_pretrained and "
            "from_pretrained; expected Model to restore all its tensors"
        )


def _other_weights(model: torch.nn.Module) -> dict[str, Tensor]:
    """Return a copy of the state dict with 1 added to each parameter; tied ones stay tied."""
    weights = copy.deepcopy({name: t.detach() for name, t in model.state_dict().items()})
    shifted: set[int] = set()
    for name, _ in model.named_parameters(remove_duplicate=False):
        tensor = weights.get(name)
        if tensor is not None and tensor.data_ptr() not in shifted:
            shifted.add(tensor.data_ptr())
            tensor.add_(1)
    return weights


def _is_small(model: torch.nn.Module) -> bool:
    return sum(parameter.nbytes for parameter in model.parameters()) <= SMALL


def _inexact(task: Task, examples: ExampleSet) -> list[str]:
    lines = []
    if task.couples_examples:
        lines.append(
            "the loss couples the examples of a micro-batch: it depends on --batch_size, and on "
            "the number of processes unless the model gathers the examples of all processes"
        )
    if not task.divides_by_items:
        weight = "target items" if examples.has_num_items else "examples"
        lines.append(
            "the loss is treated as a mean over each micro-batch, weighted by the number of its "
            f"{weight}: if the loss is another mean, add a parameter num_items_in_batch to "
            "Model.forward"
        )
    return lines
