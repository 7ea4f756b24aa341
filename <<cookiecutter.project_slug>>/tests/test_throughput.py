"""`speed` in log.json: rates, padding and FLOPs utilization, over all processes of a run."""

import numpy as np
import pytest
import torch
from accelerate import Accelerator
from torch.utils.flop_counter import FlopCounterMode
from transformers import LlamaConfig, LlamaForCausalLM, T5Config, T5ForConditionalGeneration

import train
from helpers import seams
from helpers.assertions import assert_bit_identical, read_log
from helpers.processes import Launch
from helpers.seams import Killed
from model.dataset import generate_dataset
from training.batches import Step
from training.contract import ExampleSet
from training.distributed import RankGroup
from training.flops import training_flops
from training.peak_rates import peak_rate
from training.throughput import Throughput

PROOF = pytest.mark.proof
RATES = ("examples_per_second", "target_items_per_second", "tokens_per_second")


class Lengths(torch.utils.data.Dataset):
    def __init__(self, lengths):
        self.lengths = self.num_items = np.asarray(lengths)

    def __len__(self):
        return len(self.lengths)

    def __getitem__(self, index):
        return {"index": torch.tensor(index)}


def tiny_llama(**settings) -> torch.nn.Module:
    sizes = {"hidden_size": 64, "intermediate_size": 128, "vocab_size": 200}
    heads = {"num_hidden_layers": 3, "num_attention_heads": 4, "num_key_value_heads": 4}
    config = LlamaConfig(**sizes, **heads, **settings)
    return LlamaForCausalLM._from_config(config, attn_implementation="eager")


def counted_flops(model: torch.nn.Module, length: int) -> int:
    """Count the floating-point operations of a forward and a backward pass with torch."""
    ids = torch.randint(200, (1, length))
    with FlopCounterMode(display=False) as counter:
        model(input_ids=ids, labels=ids).loss.backward()
    return counter.get_total_flops()


@pytest.mark.parametrize("tied", [False, True])
@pytest.mark.parametrize("length", [16, 256])
def test_formula_agrees_with_the_flops_counted_by_torch(length, tied):
    model = tiny_llama(tie_word_embeddings=tied)
    flops = training_flops(model)
    assert flops is not None
    assert flops.of(np.array([length])) == pytest.approx(counted_flops(model, length), rel=0.01)


def test_formula_excludes_the_gradients_of_frozen_weights():
    model = tiny_llama()
    for name, parameter in model.named_parameters():
        parameter.requires_grad_("embed_tokens" in name)
    flops = training_flops(model)
    assert flops is not None
    assert flops.of(np.array([16])) == pytest.approx(counted_flops(model, 16), rel=0.01)


def test_formula_is_not_used_for_encoder_decoders_and_convolutions():
    t5 = T5Config(d_model=16, d_kv=8, d_ff=32, num_layers=1, num_heads=2, vocab_size=20)
    assert training_flops(T5ForConditionalGeneration(t5)) is None
    assert training_flops(torch.nn.Sequential(torch.nn.Conv2d(3, 3, 3))) is None


def test_mfu_is_flops_divided_by_time_and_peak_rate():
    accelerator = Accelerator(cpu=True)
    model = tiny_llama()
    throughput = Throughput(accelerator, model, tf32=False)
    throughput._peak = 1e15
    examples = ExampleSet(Lengths([10, 30]))
    throughput.add_batch({"input_ids": torch.zeros(2, 30)})
    throughput.add_step(Step(0, 0, [0, 1], 40), examples)
    seconds = (
        40 / (measured := throughput.since_restart(RankGroup(accelerator)))["tokens_per_second"]
    )
    assert measured["padding"] == pytest.approx(1 - 40 / 60, abs=1e-3)
    flops = training_flops(model)
    assert flops is not None
    expected = flops.of(np.array([10, 30])) / (1e15 * seconds)
    assert measured["mfu"] == pytest.approx(expected, abs=1e-3)


@pytest.mark.parametrize(
    ("device", "precision", "expected"),
    [
        ("NVIDIA H100 80GB HBM3", "half", 989.4e12),
        ("NVIDIA H100 PCIe", "half", 756e12),
        ("NVIDIA A100-SXM4-80GB", "tf32", 156e12),
        ("NVIDIA L40S", "half", 362e12),
        ("NVIDIA L40", "half", None),
        ("NVIDIA A10G", "half", None),
        ("NVIDIA GeForce RTX 4090 Laptop GPU", "half", None),
        ("NVIDIA GeForce GTX 1080", "half", None),
    ],
)
def test_peak_rate_depends_on_the_device_name(device, precision, expected):
    assert peak_rate(device, precision) == expected


@PROOF
@pytest.mark.parametrize("processes", [1, 2])
def test_rates_cover_all_processes(processes, arguments, tokenizer, tmp_path):
    arguments += ["--batch_size", str(8 // processes), "--report_to", "tensorboard"]
    Launch([*arguments, "--logging_steps", "1"], tmp_path / "output", processes).expect()
    dataset = generate_dataset(arguments[1], tokenizer, 48)
    examples, items, tokens = len(dataset), dataset.num_items.sum(), dataset.lengths.sum()
    for entry in read_log(tmp_path / "run").values():
        speed = entry["speed"]
        rates = [speed[name] for name in RATES]
        assert rates[1] / rates[0] == pytest.approx(items / examples, rel=1e-2)
        assert rates[2] / rates[0] == pytest.approx(tokens / examples, rel=1e-2)
        # `seconds` includes the validation.
        assert rates[0] >= 0.9 * examples / (entry["seconds"] + 0.05)
        assert 0 <= speed["padding"] < 1
        assert speed["peak_memory_gib"] > 0
        assert "mfu" not in speed, "a CPU has no known peak rate"


@PROOF
def test_resumed_run_logs_the_same_gradient_norms(arguments, tmp_path, uninterrupted):
    arguments += ["--save_steps", "1", "--logging_steps", "1"]
    with seams.killed_before_micro_batch(3), pytest.raises(Killed):
        train.main(arguments)
    train.main(["--restore_dir", str(tmp_path / "run" / "last")])
    assert_bit_identical(tmp_path / "run", uninterrupted(arguments))
    log = read_log(tmp_path / "run")
    assert all(entry["grad_norm"] > 0 and entry["speed"] for entry in log.values())
