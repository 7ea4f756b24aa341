"""Without dropout, gradients and losses do not depend on the split of a global batch.

Also: the order of the examples, gradient clipping, and the learning rate schedule.
"""

import json
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from accelerate import Accelerator
from safetensors.torch import load_file
from transformers import Trainer, TrainingArguments

from helpers.gradient_worker import measure
from helpers.processes import Launch
from training.batches import MAX_TOKENS, Batches, epoch_order
from training.contract import ExampleSet, Task
from training.opening import open_run
from training.optimization import GradientGuard, build_scheduler, fast_forward
from training.optimizers import build_optimizer

PROOF = pytest.mark.proof
# Tuples of the number of processes, `--batch_size` and `--eval_batch_size`.
WHOLE = (1, 8, 64)
TWO_PROCESSES = [(2, 2, 3), (2, 1, 64)]
SPLITS = [(1, 2, 1), (1, 1, 3), (1, 3, 8), *TWO_PROCESSES]


@pytest.fixture(scope="module")
def measured(sample, tmp_path_factory):
    """Return a function that returns gradients, losses and scores, computed with a given split.

    Each split is measured only once.
    """
    folder = tmp_path_factory.mktemp("measured")

    def measured_of(split: tuple[int, int, int]) -> tuple[dict, dict]:
        processes, *sizes = split
        name = folder / f"{processes}-{sizes[0]}-{sizes[1]}"
        if not name.with_suffix(".json").exists() and processes == 1:
            measure(sample, folder, *sizes)
        elif not name.with_suffix(".json").exists():
            launched = [str(size) for _, *both in TWO_PROCESSES for size in both]
            worker = [str(sample), str(folder), *launched]
            module = "helpers.gradient_worker"
            Launch(worker, folder / "output", processes, module=module).expect()
        return load_file(f"{name}.safetensors"), json.loads(name.with_suffix(".json").read_text())

    return measured_of


@pytest.mark.parametrize("split", [SPLITS[0], *(pytest.param(s, marks=PROOF) for s in SPLITS[1:])])
def test_gradients_and_losses_do_not_depend_on_the_split(split, measured):
    gradients, report = measured(split)
    expected_gradients, expected = measured(WHOLE)
    assert gradients.keys() == expected_gradients.keys()
    # Some gradients, such as that of the bias of attention keys, consist of rounding errors only.
    least = 1e-3 * torch.stack([g.norm() for g in expected_gradients.values()]).norm()
    for name, gradient in expected_gradients.items():
        difference = (gradients[name] - gradient).norm() / torch.maximum(gradient.norm(), least)
        assert difference < 1e-5, name
    assert report["loss"] == pytest.approx(expected["loss"], rel=1e-5)
    assert report["chosen"] == expected["chosen"]
    assert report["valid"] == pytest.approx(expected["valid"], rel=1e-6)  # loss and scores


@PROOF
def test_trainer_of_transformers_computes_the_same_gradient(sample, arguments, tmp_path, measured):
    arguments += ["--model_id", str(sample / "tiny"), "--seed", "1"]
    with open_run(Task(), arguments) as run:
        model = run.model
        data = run.train_data.examples
    before = {name: parameter.detach().clone() for name, parameter in model.named_parameters()}
    settings = TrainingArguments(
        str(tmp_path),
        per_device_train_batch_size=2,
        gradient_accumulation_steps=4,
        max_steps=1,
        optim="sgd",  # with a learning rate of 1, a step subtracts the gradient
        learning_rate=1.0,
        lr_scheduler_type="constant",
        max_grad_norm=0.0,
        remove_unused_columns=False,
        save_strategy="no",
    )
    first = epoch_order(data.sort_keys, 8, 1, 0)[:8].tolist()
    examples = [data.dataset[index] for index in first]

    def collate(rows: list[dict]) -> dict:
        batch = data.collate(rows)
        return {key: value for key, value in batch.items() if isinstance(value, torch.Tensor)}

    Trainer(model, settings, collate, examples).train()
    expected, _ = measured(WHOLE)
    size = torch.stack([gradient.norm() for gradient in expected.values()]).norm()
    for name, parameter in model.named_parameters():
        difference = before[name] - parameter.detach() - expected[name]
        assert difference.norm() < 1e-4 * size, name


class Numbers(torch.utils.data.Dataset):
    """Examples of given lengths; the value of each example is its index."""

    def __init__(self, lengths):
        self.lengths = self.num_items = np.asarray(lengths)

    def __len__(self):
        return len(self.lengths)

    def __getitem__(self, index):
        return {"indices": torch.tensor(index)}


def make_batches(lengths, rank: int, ranks: int, batch_size: int, global_batch_size: int):
    accelerator = SimpleNamespace(
        process_index=rank, num_processes=ranks, device=torch.device("cpu")
    )
    return Batches(ExampleSet(Numbers(lengths)), accelerator, batch_size, global_batch_size, seed=0)  # type: ignore[arg-type]


def read_epoch(batches: Batches, epoch: int = 0, start: int = 0) -> list[list]:
    return [list(step.micro_batches) for step in batches.steps(epoch, start)]


@pytest.mark.parametrize("count", [1, 7, 64, 1001])
@pytest.mark.parametrize("processes", [1, 2, 3])
def test_every_example_is_used_once_in_the_same_steps(count, processes):
    lengths = np.random.default_rng(0).integers(1, 90, count)
    steps: dict[int, list[int]] = {}
    for rank in range(processes):
        for index, step in enumerate(read_epoch(make_batches(lengths, rank, processes, 3, 12), 5)):
            for micro in step:
                assert len(micro.indices) <= 3
                assert micro.batch["indices"].tolist() == micro.indices
                steps.setdefault(index, []).extend(micro.indices if micro.weight else [])
    order = epoch_order(lengths, 12, 0, 5)
    assert sorted(order) == list(range(count))
    assert len(steps) == np.ceil(count / 12)
    for index, seen in steps.items():
        assert sorted(seen) == sorted(order[12 * index : 12 * index + 12])


def test_no_micro_batch_of_several_examples_exceeds_the_token_limit():
    lengths = np.random.default_rng(0).integers(1, 5000, 200)
    for step in read_epoch(make_batches(lengths, 0, 1, 32, 32)):
        for micro in step:
            padded = len(micro.indices) * lengths[micro.indices].max()
            assert padded <= MAX_TOKENS["cpu"] or len(micro.indices) == 1


def test_all_ranks_have_the_same_number_of_micro_batches():
    ranks = [make_batches([5] * 25, rank, 4, 2, 8) for rank in range(4)]
    plans = [
        [
            (step.num_items, step.examples, [m.is_last for m in step.micro_batches])
            for step in batches.steps()
        ]
        for batches in ranks
    ]
    assert plans[0] == plans[1] == plans[2] == plans[3]


def test_resumed_epoch_has_the_remaining_batches_of_the_whole_epoch():
    batches = make_batches(range(1, 50), 0, 1, 4, 8)
    whole = [[micro.indices for micro in step] for step in read_epoch(batches, 3)]
    rest = [[micro.indices for micro in step] for step in read_epoch(batches, 3, start=16)]
    assert rest == whole[2:]


def test_each_epoch_has_different_batches():
    lengths = np.random.default_rng(0).integers(1, 90, 4096)
    orders = [epoch_order(lengths, 32, 0, epoch) for epoch in range(2)]
    first, second = ({frozenset(b) for b in order.reshape(-1, 32)} for order in orders)
    assert not first & second


@pytest.mark.parametrize("fused", [True, False])
@pytest.mark.parametrize("max_norm", [0.0, 0.1])  # 0: no clipping
def test_gradients_are_clipped_as_by_torch(max_norm, fused):
    torch.manual_seed(0)
    ours, theirs = ([torch.nn.Parameter(torch.zeros(9, 9))] for _ in range(2))
    optimizer, expected = (
        build_optimizer(torch.nn.ParameterList(p), 1e-2, 0) for p in (ours, theirs)
    )
    optimizer.defaults["fused"] = fused
    guard = GradientGuard(Accelerator(), torch.nn.ParameterList(ours), optimizer, max_norm)
    for size in (1e-3, 1.0, 10.0):  # one size would not be enough: AdamW ignores a constant factor
        ours[0].grad = size * torch.randn(9, 9)
        theirs[0].grad = ours[0].grad.clone()
        guard.clip_gradients(torch.zeros(()))
        if max_norm:
            torch.nn.utils.clip_grad_norm_(theirs, max_norm)
        optimizer.step()
        expected.step()
    assert torch.allclose(ours[0], theirs[0], rtol=1e-4, atol=1e-8)


@pytest.mark.parametrize("done", [0, 1, 5, 7, 10])
def test_schedule_follows_its_formula_from_any_step(done):
    """Of 10 steps, 4 are warm-up. The rate is lr * step / 4, then lr * (10 - step) / 6."""
    parameter = torch.nn.Parameter(torch.zeros(2))
    optimizer = torch.optim.AdamW([parameter], lr=6e-3)
    scheduler = build_scheduler(optimizer, "linear", 4, 10)
    fast_forward(scheduler, optimizer, done)
    for step in range(done, 11):
        expected = 6e-3 * (step / 4 if step < 4 else (10 - step) / 6)
        assert optimizer.param_groups[0]["lr"] == pytest.approx(expected)
        parameter.grad = torch.ones(2)
        optimizer.step()
        scheduler.step()
