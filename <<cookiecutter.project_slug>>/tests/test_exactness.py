"""The result does not depend on how the work was cut up."""

import json
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from accelerate import Accelerator
from safetensors.torch import load_file
from transformers import Trainer, TrainingArguments

from measure import measure
from model.configuration import ModelConfig
from model.dataset import generate_dataset
from model.modeling import Model
from real_runs import Run
from training.batches import MAX_TOKENS, Batches, epoch_order
from training.optimization import Guard, build_optimizer, build_scheduler
from training.state import TrainingState

WHOLE, TWO_PROCESSES = (1, 8, 64), [(2, 2, 3), (2, 1, 64)]
SPLITS = [(1, 2, 1), (1, 1, 3), (1, 3, 8), *TWO_PROCESSES]


@pytest.fixture(scope="module")
def measured(sample, tmp_path_factory):
    """Gradients and losses by (processes, batch size, evaluation batch size)."""
    folder = tmp_path_factory.mktemp("measured")
    launched = [str(n) for split in TWO_PROCESSES for n in split[1:]]
    run = Run([str(sample), str(folder), *launched], folder / "output", 2, module="measure")
    assert run.wait() == [0, 0], run.output() + run.output(1)
    for processes, batch_size, eval_batch_size in [WHOLE, *SPLITS]:
        if processes == 1:
            measure(sample, folder, batch_size, eval_batch_size)
    return {
        (processes, *sizes): (
            load_file(folder / f"{processes}-{sizes[0]}-{sizes[1]}.safetensors"),
            json.loads((folder / f"{processes}-{sizes[0]}-{sizes[1]}.json").read_text()),
        )
        for processes, *sizes in [WHOLE, *SPLITS]
    }


@pytest.mark.parametrize("split", SPLITS)
def test_gradients_and_losses_do_not_depend_on_the_split(split, measured):
    gradients, report = measured[split]
    expected_gradients, expected = measured[WHOLE]
    assert gradients.keys() == expected_gradients.keys()
    # The gradient of a key's bias, say, is zero but for rounding: it has no size of its own.
    least = 1e-3 * torch.stack([g.norm() for g in expected_gradients.values()]).norm()
    for name, gradient in expected_gradients.items():
        difference = (gradients[name] - gradient).norm() / torch.maximum(gradient.norm(), least)
        assert difference < 1e-5, name
    assert report["loss"] == pytest.approx(expected["loss"], rel=1e-5)
    assert report["valid"] == pytest.approx(expected["valid"], rel=1e-6)  # the scores as well


def test_transformers_trainer_computes_the_same_gradient(sample, tokenizer, tmp_path, measured):
    dataset = generate_dataset(sample / "train.jsonl", tokenizer, 48)
    torch.manual_seed(0)
    model = Model(ModelConfig(str(sample / "tiny"), **dataset.schema))
    before = {name: parameter.detach().clone() for name, parameter in model.named_parameters()}
    arguments = TrainingArguments(
        str(tmp_path),
        per_device_train_batch_size=2,
        gradient_accumulation_steps=4,
        max_steps=1,
        optim="sgd",  # one step at a rate of 1 takes the gradient off the weights
        learning_rate=1.0,
        lr_scheduler_type="constant",
        max_grad_norm=0.0,
        remove_unused_columns=False,
        save_strategy="no",
    )
    examples = [dataset[int(index)] for index in epoch_order(dataset.lengths, 8, 1, 0)[:8]]
    Trainer(model, arguments, dataset.collate, examples).train()
    expected = measured[WHOLE][0]
    size = torch.stack([gradient.norm() for gradient in expected.values()]).norm()
    for name, parameter in model.named_parameters():
        difference = before[name] - parameter.detach() - expected[name]
        assert difference.norm() < 1e-4 * size, name


class Numbers:
    """A data set of examples of given lengths."""

    def __init__(self, lengths):
        self.lengths = self.num_items = np.asarray(lengths)

    def __len__(self):
        return len(self.lengths)

    def __getitem__(self, index):
        return torch.tensor(index)

    def collate(self, examples):
        return {"indices": torch.stack(examples)}


def batches_of(dataset, rank: int, world: int, batch_size: int, global_batch_size: int) -> Batches:
    device = torch.device("cpu")
    process = SimpleNamespace(process_index=rank, num_processes=world, device=device)
    return Batches(dataset, process, batch_size, global_batch_size, seed=0)  # type: ignore[arg-type]


@pytest.mark.parametrize("count", [1, 7, 64, 1001])
@pytest.mark.parametrize("processes", [1, 2, 3])
def test_every_example_is_seen_once_in_the_same_steps(count, processes):
    dataset = Numbers(np.random.default_rng(0).integers(1, 90, count))
    steps: dict[int, list[int]] = {}
    for rank in range(processes):
        step = 0
        for _, micro in batches_of(dataset, rank, processes, 3, 12).epoch(5):
            assert len(micro.indices) <= 3
            steps.setdefault(step, []).extend(micro.indices if micro.weight else [])
            step += micro.ends_step
    order = epoch_order(dataset.lengths, 12, 0, 5)
    assert sorted(order) == list(range(count))
    assert len(steps) == -(-count // 12)
    for step, seen in steps.items():
        assert sorted(seen) == sorted(order[12 * step : 12 * step + 12])


def test_no_forward_pass_takes_more_than_its_tokens():
    lengths = np.random.default_rng(0).integers(1, 5000, 200)
    for _, micro in batches_of(Numbers(lengths), 0, 1, 32, 32).epoch():
        padded = len(micro.indices) * lengths[micro.indices].max()
        assert padded <= MAX_TOKENS["cpu"] or len(micro.indices) == 1


def test_all_processes_make_as_many_forward_passes():
    passes = [
        [(m.ends_step, m.num_items, len(m.global_batch)) for _, m in batches.epoch()]
        for batches in (batches_of(Numbers([5] * 25), rank, 4, 2, 8) for rank in range(4))
    ]
    assert passes[0] == passes[1] == passes[2] == passes[3]


def test_an_epoch_goes_on_from_any_step():
    batches = batches_of(Numbers(range(1, 50)), 0, 1, 4, 8)
    whole_epoch = [micro for _, micro in batches.epoch(3)]
    assert [micro for _, micro in batches.epoch(3, start=16)] == whole_epoch[4:]


def test_epochs_mix_the_examples_anew():
    lengths = np.random.default_rng(0).integers(1, 90, 4096)
    orders = [epoch_order(lengths, 32, 0, epoch) for epoch in range(2)]
    first, second = ({frozenset(b) for b in order.reshape(-1, 32)} for order in orders)
    assert not first & second


@pytest.mark.parametrize("fused", [True, False])
@pytest.mark.parametrize("max_norm", [0.0, 0.1])  # 0: as they are
def test_gradients_are_clipped_as_torch_clips_them(max_norm, fused):
    torch.manual_seed(0)
    ours, theirs = ([torch.nn.Parameter(torch.zeros(9, 9))] for _ in range(2))
    optimizer, expected = (
        build_optimizer(torch.nn.ParameterList(p), 1e-2, 0) for p in (ours, theirs)
    )
    optimizer.defaults["fused"] = fused
    guard = Guard(Accelerator(), torch.nn.ParameterList(ours), optimizer, max_norm)
    for size in (1e-3, 1.0, 10.0):  # Adam forgets a factor that all gradients share
        ours[0].grad = size * torch.randn(9, 9)
        theirs[0].grad = ours[0].grad.clone()
        guard.clip_and_check(torch.zeros(()))
        if max_norm:
            torch.nn.utils.clip_grad_norm_(theirs, max_norm)
        optimizer.step()
        expected.step()
    assert torch.allclose(ours[0], theirs[0], rtol=1e-4, atol=1e-8)


@pytest.mark.parametrize("done", [0, 1, 5, 7, 10])
def test_the_schedule_is_the_formula_wherever_a_run_is_taken_up(done):
    """Linear, 4 steps of warm-up and 10 in all: lr * step / 4, then lr * (10 - step) / 6."""
    parameter = torch.nn.Parameter(torch.zeros(2))
    optimizer = torch.optim.AdamW([parameter], lr=6e-3)
    state = TrainingState({}, {}, 8, total_steps=10, scheduler_steps=done)
    scheduler = build_scheduler(optimizer, "linear", 4, state)
    for step in range(done, 11):
        expected = 6e-3 * (step / 4 if step < 4 else (10 - step) / 6)
        assert optimizer.param_groups[0]["lr"] == pytest.approx(expected)
        parameter.grad = torch.ones(2)
        optimizer.step()
        scheduler.step()
