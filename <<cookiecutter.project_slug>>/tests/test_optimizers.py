"""`--optimizer`, layer-wise learning rates, and averages of the weights."""

import importlib.util
import signal
from contextlib import nullcontext
from functools import partial
from pathlib import Path

import pytest
import torch
from transformers import (
    AutoConfig,
    BartForConditionalGeneration,
    BertForSequenceClassification,
    LlamaForCausalLM,
    PreTrainedModel,
    T5ForConditionalGeneration,
)

import train
from errors import RunError
from helpers import seams
from helpers.assertions import (
    assert_bit_identical,
    assert_equal_tensors,
    read_log,
    read_result,
    read_weights,
)
from helpers.launch_env import fsdp2
from helpers.model_folder import files_of_model_in
from helpers.processes import STOPPED, Launch
from model.modeling import Model
from training.arguments import read_config
from training.averaging import EMA, WeightAverage
from training.contract import Task
from training.layers import (
    distances_from_head,
    head_parameters,
    hidden_matrices,
    learning_rate_factors,
)
from training.optimizer_options import OptimizerOptions
from training.optimizers import LR_FACTOR, build_optimizer

SIZES = {"d_model": 8, "encoder_layers": 3, "decoder_layers": 2, "vocab_size": 20, "num_labels": 3}
SIZES |= {"encoder_attention_heads": 2, "decoder_attention_heads": 2, "num_heads": 2, "d_kv": 4}
SIZES |= {"hidden_size": 8, "num_hidden_layers": 3, "num_attention_heads": 2, "num_layers": 3}
SIZES |= {"intermediate_size": 8, "encoder_ffn_dim": 8, "decoder_ffn_dim": 8, "d_ff": 8}
SIZES |= {"num_key_value_heads": 2, "num_decoder_layers": 2, "max_position_embeddings": 16}

# adamw and sgd are omitted: many other tests resume a run with adamw, and a test below with sgd.
RUNS = [
    ["--optimizer", "muon", "--layer_decay", "0.8", "--ema", "0.5"],
    ["--optimizer", "schedule_free", "--num_warmup_steps", "2"],
    ["--optimizer", "adamw_8bit"],
    ["--ema", "0.9"],
    "averaging",  # the optimizer of optimizers/averaging/optimization.py
]
IDS = ["muon", "schedule_free", "adamw_8bit", "ema", "own"]
NEEDS = {"schedule_free": "schedulefree", "adamw_8bit": "bitsandbytes"}


def skip_if_missing(flags: list[str]) -> None:
    for name, package in NEEDS.items():
        if name in flags and not importlib.util.find_spec(package):
            pytest.skip(f"{package} is not installed")


@pytest.mark.proof
@pytest.mark.parametrize("kind", RUNS, ids=IDS)
def test_killed_and_resumed_run_is_bit_identical(kind, arguments, tmp_path):
    is_own = isinstance(kind, str)
    flags = ["--lr_scheduler_type", "constant"] if is_own else kind
    skip_if_missing(flags)
    arguments += [*flags, "--max_steps", "5", "--valid_steps", "2", "--save_steps", "3"]
    outdir = arguments.index("--outdir") + 1
    with files_of_model_in(f"optimizers/{kind}", also_own=True) if is_own else nullcontext():
        train.main(arguments)
        arguments[outdir] = str(tmp_path / "other")
        with pytest.raises(seams.Killed), seams.killed_before_micro_batch(3):
            train.main(arguments)
        train.main(["--restore_dir", str(tmp_path / "other" / "last")])
    assert_bit_identical(tmp_path / "other", tmp_path / "run")
    best = read_weights(tmp_path / "run" / "best")
    assert_equal_tensors(read_weights(tmp_path / "other" / "best"), best)
    raw = read_weights(tmp_path / "run" / "last")
    averages = is_own or "--ema" in flags or "schedule_free" in flags
    assert averages == any(not torch.equal(best[name], raw[name]) for name in raw)


@pytest.fixture(scope="module")
def averaged(sample, tmp_path_factory) -> Path:
    """Output directory of a run with --ema. The last validation of the run is the best one."""
    outdir = tmp_path_factory.mktemp("averaged") / "run"
    data = ["--train_input", str(sample / "train.jsonl"), "--max_len", "48", "--batch_size", "8"]
    data += ["--valid_input", str(sample / "valid.jsonl"), "--model_id", str(sample / "tiny")]
    train.main([*data, "--outdir", str(outdir), "--max_steps", "4", "--ema", "0.8"])
    return outdir


@pytest.mark.proof
def test_best_contains_the_average_that_was_validated(averaged, sample, tmp_path):
    state = read_result(averaged).moments
    best = read_weights(averaged / "best")
    average = {k.removesuffix(f"/{EMA}"): v for k, v in state.items() if k.endswith(EMA)}
    prefix = f"{Model.base_model_prefix}."
    assert_equal_tensors(best, {name.removeprefix(prefix): v for name, v in average.items()})
    model = ["--model_id", str(averaged / "best"), "--lr", "0", "--max_steps", "1"]
    data = ["--train_input", str(sample / "train.jsonl"), "--max_len", "48", "--batch_size", "8"]
    data += ["--valid_input", str(sample / "valid.jsonl"), "--outdir", str(tmp_path / "again")]
    train.main([*data, *model])
    before, again = (next(iter(read_log(f).values())) for f in (averaged, tmp_path / "again"))
    assert again["valid_log"]["loss"] == pytest.approx(before["valid_log"]["loss"], rel=1e-6)


@pytest.mark.proof
def test_signal_during_validation_saves_the_raw_weights(averaged, arguments, tmp_path, sample):
    arguments[arguments.index("--model_id") + 1] = str(sample / "tiny")
    arguments += ["--max_steps", "4", "--ema", "0.8", "--valid_steps", "4"]
    patch = partial(seams.signal_in_first_validation, signal.SIGTERM, 0)
    Launch([*arguments, "--eval_batch_size", "2"], tmp_path / "output", 1, patch).expect(STOPPED)
    result, expected = read_result(tmp_path / "run"), read_result(averaged)
    assert result.log == {}
    assert_equal_tensors(result.weights, expected.weights)
    assert_equal_tensors(result.moments, expected.moments)


@pytest.mark.proof
def test_average_and_sgd_under_fsdp2_resume_bit_identically_and_agree_with_ddp(
    in_two_processes, arguments, sample, tmp_path
):
    arguments += ["--optimizer", "sgd", "--lr", "0.05", "--ema", "0.8"]
    arguments += ["--lr_scheduler_type", "constant", "--valid_steps", "2"]
    arguments[arguments.index("--model_id") + 1] = str(sample / "tiny")
    last = ("--restore_dir", str(tmp_path / "run" / "last"))
    in_two_processes("whole", "--max_steps", "5", patch=fsdp2)
    in_two_processes("run", "--max_steps", "3", patch=fsdp2)
    in_two_processes("run", "--max_steps", "5", *last, patch=fsdp2)
    in_two_processes("ddp", "--max_steps", "5")
    result, whole, ddp = (read_result(tmp_path / name) for name in ("run", "whole", "ddp"))
    assert_equal_tensors(result.weights, whole.weights)
    assert_equal_tensors(result.moments, whole.moments)
    for name, tensor in read_weights(tmp_path / "ddp" / "best").items():
        torch.testing.assert_close(read_weights(tmp_path / "whole" / "best")[name], tensor)
    for name, tensor in ddp.weights.items():
        torch.testing.assert_close(whole.weights[name], tensor)
    losses = [[e["valid_log"]["loss"] for e in run.log.values()] for run in (whole, ddp)]
    assert losses[0] == pytest.approx(losses[1], rel=1e-5)


@pytest.mark.proof
def test_nonfinite_step_leaves_weights_unchanged_with_muon(arguments, tmp_path):
    arguments += ["--optimizer", "muon", "--ema", "0.5", "--max_steps", "6", "--save_steps", "2"]
    with pytest.raises(RunError, match="not finite"), seams.nonfinite_step("gradient", 0, 2, True):
        train.main(arguments)
    weights = read_weights(tmp_path / "run" / "bad_batch")
    assert_equal_tensors(weights, read_weights(tmp_path / "run" / "last"))


@pytest.mark.proof
def test_changed_optimizer_or_average_is_refused_on_resume(averaged):
    for flags in (
        ["--ema", "0"],
        ["--ema", "0.9"],
        ["--optimizer", "sgd"],
        ["--layer_decay", "1.5"],
    ):
        with pytest.raises(RunError, match=f"{flags[0]} .*: the resumed run has .*; expected the"):
            train.main(["--restore_dir", str(averaged / "last"), *flags])


@pytest.mark.parametrize(
    ("flags", "sentence"),
    [
        ("--optimizer sgd", "expected --lr, too"),
        ("--optimizer sgd --lr 0.1 --beta1 0.9", "--beta1 0.9: --optimizer sgd has no such"),
        ("--momentum 0.9", "--momentum 0.9: --optimizer adamw has no such setting"),
        ("--beta2 1", "--beta2 1.0: expected less than 1"),
        ("--ema 1", "--ema 1.0: expected less than 1"),
        ("--layer_decay 0", "--layer_decay 0: expected a positive number"),
        ("--optimizer schedule_free --ema 0.9", "schedule_free averages the weights itself"),
        (
            "--optimizer schedule_free --lr_scheduler_type linear",
            "replaces the decay of the learning rate",
        ),
    ],
)
def test_invalid_or_unused_optimizer_option_is_refused(flags, sentence, monkeypatch, tmp_path):
    monkeypatch.setattr("training.optimizer_options.require", lambda *_: None)
    with pytest.raises(RunError, match=sentence):
        read_config(Task(), ["--outdir", str(tmp_path / "run"), *flags.split()])


@pytest.mark.parametrize(("name", "package"), NEEDS.items())
def test_optimizer_whose_package_is_missing_is_refused(name, package):
    if importlib.util.find_spec(package):
        pytest.skip(f"{package} is installed")
    with pytest.raises(RunError, match=f"--optimizer {name} needs the package {package}: pip"):
        OptimizerOptions(optimizer=name).check()


def test_optimizer_that_needs_full_matrices_is_refused_under_fsdp2():
    OptimizerOptions().check_sharding()
    for name in ("muon", "adamw_8bit"):
        with pytest.raises(RunError, match=f"--optimizer {name}: needs full matrices"):
            OptimizerOptions(optimizer=name).check_sharding()


def test_learning_rate_factors_for_a_model_without_layers_or_head_are_refused():
    model = torch.nn.Linear(3, 3)
    with pytest.raises(RunError, match="--layer_decay 0.9: no layers found in Linear"):
        learning_rate_factors(model, 0.9, 1.0)
    with pytest.raises(RunError, match="--head_lr_factor 2.0: no head found in Linear"):
        learning_rate_factors(model, 1.0, 2.0)


def tiny_model(kind: type[PreTrainedModel], **settings) -> PreTrainedModel:
    model_type = kind.config_class.model_type
    return kind(AutoConfig.for_model(model_type, **SIZES, **settings))


@pytest.mark.parametrize(
    ("kind", "expected"),
    [
        (
            BertForSequenceClassification,
            {
                "bert.embeddings.LayerNorm.weight": 4,
                "bert.embeddings.position_embeddings.weight": 4,
                "bert.encoder.layer.0.output.dense.weight": 3,
                "bert.encoder.layer.2.output.dense.bias": 1,
                "bert.pooler.dense.weight": 0,
                "classifier.weight": 0,
            },
        ),
        (
            LlamaForCausalLM,
            {
                "model.embed_tokens.weight": 4,
                "model.layers.0.mlp.up_proj.weight": 3,
                "model.norm.weight": 0,
                "lm_head.weight": 0,
            },
        ),
        (
            BartForConditionalGeneration,
            {
                "model.shared.weight": 4,
                "model.encoder.layernorm_embedding.weight": 4,
                "model.encoder.layers.0.fc1.weight": 3,
                "model.encoder.layers.2.fc1.weight": 1,
                "model.decoder.layers.0.fc1.weight": 2,
                "model.decoder.layers.1.encoder_attn.k_proj.weight": 1,
            },
        ),
        (
            T5ForConditionalGeneration,
            {
                "shared.weight": 4,
                "encoder.block.0.layer.0.SelfAttention.relative_attention_bias.weight": 3,
                "decoder.block.0.layer.0.SelfAttention.q.weight": 2,
                "decoder.final_layer_norm.weight": 0,
            },
        ),
    ],
    ids=["bert", "llama", "bart", "t5"],
)
def test_layers_are_counted_from_the_head(kind, expected):
    model = tiny_model(kind)
    distances = distances_from_head(model)
    assert {name: distances[model.get_parameter(name)] for name in expected} == expected


def test_head_and_hidden_matrices_are_found():
    model = tiny_model(BertForSequenceClassification)
    names = {parameter: name for name, parameter in model.named_parameters()}
    assert {names[p] for p in head_parameters(model)} == {"classifier.weight", "classifier.bias"}
    matrices = {names[p] for p in hidden_matrices(model)}
    assert len(matrices) == 3 * 6 + 1  # 6 in each of 3 layers, and the pooler
    assert not any("embeddings" in name or "classifier" in name for name in matrices)
    tied = tiny_model(LlamaForCausalLM, tie_word_embeddings=True)
    assert not head_parameters(tied)
    untied = tiny_model(LlamaForCausalLM, tie_word_embeddings=False)
    assert head_parameters(untied) == {untied.lm_head.weight}


@pytest.mark.parametrize("name", ["adamw", "muon", "sgd"])
def test_each_parameter_has_the_learning_rate_of_its_layer(name):
    model = tiny_model(BertForSequenceClassification)
    options = OptimizerOptions(optimizer=name, layer_decay=0.5, head_lr_factor=10.0)
    groups = build_optimizer(model, 1e-3, 0.1, options).param_groups
    rates = {p: group["lr"] for group in groups for p in group["params"]}
    assert rates.keys() == set(model.parameters())
    expected = {"classifier.weight": 10.0, "bert.pooler.dense.bias": 1.0}
    expected |= {"bert.encoder.layer.0.output.dense.weight": 1 / 8}
    for parameter, factor in expected.items():
        assert rates[model.get_parameter(parameter)] == pytest.approx(1e-3 * factor)
    assert all(g["lr"] == pytest.approx(1e-3 * g[LR_FACTOR]) for g in groups)


def test_average_is_refused_if_save_pretrained_has_no_state_dict():
    optimizer = torch.optim.AdamW([torch.nn.Parameter(torch.ones(1))])
    WeightAverage(torch.nn.Linear(1, 1), optimizer, 0.0, 0).check_save(lambda folder: None)
    average = WeightAverage(torch.nn.Linear(1, 1), optimizer, 0.9, 0)
    average.check_save(Model.save_pretrained)
    with pytest.raises(RunError, match="save_pretrained has no parameter state_dict"):
        average.check_save(lambda folder: None)


def test_average_follows_its_formula_and_the_raw_weights_are_restored():
    torch.manual_seed(0)
    model = torch.nn.Linear(3, 3)
    unused = torch.nn.Parameter(torch.ones(2))
    model.register_parameter("unused", unused)
    optimizer = torch.optim.AdamW(model.parameters(), lr=0.1)
    average = WeightAverage(model, optimizer, decay=0.25, updates=0)
    expected = None
    for step in range(1, 5):
        model(torch.randn(2, 3)).sum().backward()
        optimizer.step()
        average.update()
        optimizer.zero_grad()
        decay = min(0.25, (1 + step) / (10 + step))
        weights = model.weight.detach().clone()
        expected = weights if expected is None else decay * expected + (1 - decay) * weights
    with average.applied():
        torch.testing.assert_close(model.weight.detach(), expected)
        with average.applied(False):
            assert torch.equal(model.weight, weights)
        torch.testing.assert_close(model.weight.detach(), expected)
    assert torch.equal(model.weight, weights)
    unused.grad = torch.ones(2)  # the next step has to create the state of this parameter
    optimizer.step()
    assert not torch.equal(unused, torch.ones(2))
