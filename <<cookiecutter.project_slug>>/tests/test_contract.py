"""Check that model/ follows model/interface.py, with the first rows of data/ and the base model.

Tests of parts that model/ does not have are skipped or pass. The messages of most failed tests say
what to change.
"""

import warnings
from collections.abc import Iterator
from itertools import islice
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch import Tensor

import train
from conftest import ROOT
from helpers.assertions import assert_bit_identical
from helpers.seams import Killed, killed_before_micro_batch
from reporting.predictions import open_rows
from training.contract import Task, model_inputs, predictor_input
from training.loading import build_config, build_model, load_model, load_tokenizer
from training.randomness import seed_all

DATA = ROOT / "data" / "train.jsonl"
ROWS = 64
IN_BATCH = 6
MAX_LEN = 64


@pytest.fixture(scope="module")
def rows(tmp_path_factory) -> Iterator[str]:
    """A file with the first rows of the training data."""
    if not DATA.exists():
        pytest.skip("no data/train.jsonl")
    with DATA.open(encoding="utf-8") as file:
        lines = list(islice(file, ROWS))
    path = tmp_path_factory.mktemp("rows") / "train.jsonl"
    path.write_text("".join(lines), encoding="utf-8")
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(ROOT)  # BASE_MODEL and other options may be relative paths
        yield str(path)


@pytest.fixture(scope="module")
def project(rows) -> SimpleNamespace:
    """The parts of model/, built with the default arguments except `MAX_LEN`, and a batch."""
    task = Task()
    model_id = task.base_model
    tokenizer = load_tokenizer(model_id) if task.needs_tokenizer else None
    options = {name: option.get("default") for name, option in task.data_options.items()}
    examples = task.read(rows, tokenizer, MAX_LEN, **options)
    arguments = {name: option.get("default") for name, option in task.model_options.items()}
    torch.manual_seed(0)
    config = build_config(task, model_id, {**examples.schema, **arguments}, tokenizer)
    model, _ = build_model(task.model_class, config, model_id)
    indices = list(range(min(IN_BATCH, len(examples))))
    return SimpleNamespace(
        task=task,
        tokenizer=tokenizer,
        examples=examples,
        model=model.eval(),
        indices=indices,
        batch=examples.batch(indices),
        items=examples.num_items[indices].sum().item(),
        score_options={n: option.get("default") for n, option in task.score_options.items()},
    )


def loss_of(project: SimpleNamespace, indices: list[int], num_items: float) -> Tensor:
    """Compute what some examples add to the loss of a batch with `num_items` target items."""
    batch = project.examples.batch(indices)
    loss = project.task.forward(project.model, batch, num_items)[1]["loss"]
    if project.task.divides_by_items:
        return loss
    return loss * float(project.examples.num_items[indices].sum()) / num_items


def same(value: Any, other: Any) -> bool:
    if isinstance(value, dict):
        return value.keys() == other.keys() and all(same(value[k], other[k]) for k in value)
    return torch.equal(value, other) if isinstance(value, Tensor) else value == other


def test_loading_examples_twice_gives_the_same_values(project):
    batches = []
    for _ in range(2):
        seed_all(0)  # as before each micro-batch: a data set may draw random numbers
        batches.append(project.examples.batch(project.indices))
    assert same(*batches), (
        "model/dataset.py: the same examples have different values after the same seed; expected "
        "random numbers only from torch, numpy or random"
    )


def test_reading_a_file_with_the_schema_gives_the_same_schema(project, rows):
    examples = project.examples
    other = project.task.read(rows, project.tokenizer, MAX_LEN, **examples.schema)
    assert other.schema == examples.schema, (
        "model/dataset.py: generate_dataset(path, **schema) changes the schema; expected a "
        "parameter for each key of the schema, and the same values in the schema of the result"
    )


def test_losses_are_finite_scalars(project):
    losses = project.task.forward(project.model, project.batch, project.items)[1]
    for name, loss in losses.items():
        assert isinstance(loss, Tensor) and loss.ndim == 0 and loss.isfinite(), (
            f"model/modeling.py: {name} is {loss}; forward has to return a finite scalar"
        )


def test_some_parameters_get_a_gradient(project):
    project.task.forward(project.model, project.batch, project.items)[1]["loss"].backward()
    trained = [(n, p) for n, p in project.model.named_parameters() if p.requires_grad]
    without = [name for name, parameter in trained if parameter.grad is None]
    project.model.zero_grad()
    assert len(without) < len(trained), (
        "model/modeling.py: no parameter gets a gradient; expected a loss that depends on one"
    )
    if without:  # allowed in a run
        warnings.warn(f"parameters without a gradient: {', '.join(without[:8])}", stacklevel=1)


def test_the_loss_is_divided_by_num_items_in_batch(project):
    if not project.task.divides_by_items:
        pytest.skip("Model.forward has no parameter num_items_in_batch: its loss is a mean")
    once, half = (loss_of(project, project.indices, n) for n in (project.items, 2 * project.items))
    assert torch.allclose(half, once / 2, rtol=1e-4), (
        "model/modeling.py: the loss of forward is not divided by num_items_in_batch; expected the "
        "sum of the losses of the target items, divided by num_items_in_batch"
    )


def test_the_loss_does_not_depend_on_the_split(project):
    if project.task.couples_examples:
        pytest.skip("Model.loss_couples_examples is True: the loss depends on the whole batch")
    whole = loss_of(project, project.indices, project.items)
    parts = [loss_of(project, [index], project.items) for index in project.indices]
    assert torch.allclose(torch.stack(parts).sum(), whole, rtol=1e-4), (
        "model/: the loss of a batch differs from the sum of the losses of its examples; expected "
        "that padding is masked and that num_items of the data set counts the target items of the "
        "loss, or Model.loss_couples_examples = True"
    )


def test_a_loaded_model_equals_the_saved_model(project, tmp_path):
    model = project.model
    model.save_pretrained(tmp_path)
    loaded = load_model(project.task.model_class, str(tmp_path)).eval()
    for name, tensor in model.state_dict().items():
        assert torch.equal(tensor, loaded.state_dict()[name]), (
            f"model/modeling.py: {name} differs after save_pretrained and from_pretrained"
        )
    trained = {name: p.requires_grad for name, p in model.named_parameters()}
    assert trained == {name: p.requires_grad for name, p in loaded.named_parameters()}


def test_a_batch_has_tensors_for_forward(project):
    inputs = model_inputs(project.batch)
    assert inputs, "model/dataset.py: a batch has no tensors; expected the inputs of forward"


def test_compute_returns_each_score_of_directions_and_reset_removes_old_values(project):
    task, schema = project.task, project.examples.schema
    device = torch.device("cpu")
    scores = task.build_scores(project.model, project.tokenizer, device, project.score_options)
    found = []
    for _ in range(2):
        scores.reset()
        with torch.no_grad():
            outputs, losses = task.forward(project.model, project.batch, project.items)
            scores.update(outputs, project.batch)
            found.append(scores.compute(losses["loss"].item()))
    expected = task.directions(schema, project.score_options).keys() - {"loss"}
    assert expected <= found[0].keys(), (
        f"model/metrics.py: Scores.compute returns {sorted(found[0])}; expected all names that "
        f"Scores.directions returns, {sorted(expected)}"
    )
    assert repr(found[0]) == repr(found[1]), (
        "model/metrics.py: Scores.reset keeps values of the previous validation; expected it to "
        "remove them"
    )


def test_the_optimizer_has_each_trained_parameter_once(project):
    build = project.task.build_optimizer
    if build is None:
        pytest.skip("model/optimization.py has no build_optimizer")
    groups = build(project.model, 1e-3, 0.01).param_groups
    held = [id(parameter) for group in groups for parameter in group["params"]]
    trained = [id(p) for p in project.model.parameters() if p.requires_grad]
    assert sorted(held) == sorted(trained), (
        "model/optimization.py: build_optimizer has to add each parameter that requires a gradient "
        "to exactly one parameter group"
    )


def test_each_row_gets_a_prediction(project, rows):
    if project.task.predictor_class is None:
        pytest.skip("model/prediction.py has no Predictor")
    task = project.task
    options = {name: option.get("default") for name, option in task.predict_options.items()}
    predictor = task.predictor_class(
        project.model, project.tokenizer, MAX_LEN, project.examples.schema, **options
    )
    given = [predictor_input(row) for row in islice(open_rows(rows, None, predictor)(), 3)]
    predictions = predictor(given)
    assert len(predictions) == len(given) and all("prediction" in row for row in predictions), (
        "model/prediction.py: Predictor has to return a dict with `prediction` for each row"
    )


def test_a_killed_run_is_resumed_bit_identically(rows, tmp_path):
    whole = tmp_path / "whole"
    killed = tmp_path / "killed"
    data = ["--train_input", rows, "--valid_input", rows, "--max_len", str(MAX_LEN)]
    steps = ["--batch_size", "4", "--max_steps", "4", "--save_steps", "1"]
    train.main([*data, *steps, "--outdir", str(whole)])
    with pytest.raises(Killed), killed_before_micro_batch(3):
        train.main([*data, *steps, "--outdir", str(killed)])
    train.main(["--outdir", str(killed), "--restore_dir", "auto"])
    assert_bit_identical(killed, whole)
