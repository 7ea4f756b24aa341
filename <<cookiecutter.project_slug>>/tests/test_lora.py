"""LoRA adapters: which parameters are trained and saved, exactness, resuming, and other tools."""

import importlib.util
import inspect
import os
import re
import shutil
import signal
import subprocess
import sys
from functools import partial
from pathlib import Path

import pytest
import torch
import transformers
from packaging.version import Version
from safetensors.torch import load_file
from torch import nn
from transformers import AutoConfig, AutoModel

import export
import predict
import train
from conftest import ROOT
from errors import RunError
from helpers import seams
from helpers.assertions import (
    ADAPTER_FILE,
    assert_bit_identical,
    assert_equal_tensors,
    read_log,
    read_result,
    read_state,
    read_weights,
)
from helpers.gradient_worker import measure
from helpers.launch_env import fsdp2
from helpers.processes import Launch
from model.adapter import PREFIX, base_tensors
from model.modeling import Model
from training import atomic
from training.contract import Task
from training.loading import load_model
from training.opening import open_run
from training.optimizer_state import OptimizerState
from training.state import OPTIMIZER_FILE

pytest.importorskip("peft")
pytestmark = pytest.mark.proof

RANK = 2
GENERATES = Model.can_generate()
TEXT = "Do you see it?"
# A script for an empty folder: it loads an adapter with the Auto classes of PEFT and transformers.
OPEN = """
import sys
import peft, torch, transformers
path, name, labels = sys.argv[1], sys.argv[2], sys.argv[3]
options = {"num_labels": int(labels)} if labels else {}
tokenizer = transformers.AutoTokenizer.from_pretrained(path)
ids = tokenizer("Do you see it?", return_tensors="pt").input_ids
auto = getattr(peft, name.replace("AutoModel", "AutoPeftModel", 1))
for number, auto in enumerate([auto, getattr(transformers, name)]):
    model = auto.from_pretrained(path, **options).eval()
    for tensor in [*model.parameters(), *model.buffers()]:
        tensor.data = tensor.data.clone()  # rounding depends on the memory address of mapped files
    inputs = {"input_ids": ids, "attention_mask": torch.ones_like(ids)}
    if model.config.is_encoder_decoder:
        inputs["decoder_input_ids"] = ids
    torch.save(model(**inputs).logits.detach(), f"logits{number}.pt")
"""


def save_base(folder: Path, tiny: Path, seed: int = 0, **changes: object) -> Path:
    """Save a base model with random weights; a classifier is saved without its head."""
    shutil.copytree(tiny, folder)
    config = AutoConfig.from_pretrained(tiny)
    for name, value in changes.items():
        setattr(config, name, value)
    auto = Model.auto_class if GENERATES else AutoModel
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        auto.from_config(config).save_pretrained(folder)
    return folder


def logits_of(model: nn.Module, tokenizer) -> torch.Tensor:
    for tensor in [*model.parameters(), *model.buffers()]:
        tensor.data = tensor.data.clone()  # as in OPEN
    ids = tokenizer(TEXT, return_tensors="pt").input_ids
    inputs = {"input_ids": ids, "attention_mask": torch.ones_like(ids)}
    if model.config.is_encoder_decoder and GENERATES:  # type: ignore[union-attr]
        inputs["decoder_input_ids"] = ids
    with torch.no_grad():
        return model.eval()(**inputs).logits


@pytest.fixture(scope="module")
def base(tmp_path_factory) -> Path:
    return save_base(tmp_path_factory.mktemp("base") / "base", ROOT / "tiny")


@pytest.fixture
def lora(arguments, base) -> list[str]:
    """Arguments of a short run with an adapter, and with the dropout of `tiny`, if any."""
    options = ["--lora_rank", str(RANK), "--lr", "1e-2", "--lr_scheduler_type", "constant"]
    return [*arguments, "--model_id", str(base), *options]


@pytest.fixture(scope="module")
def trained(sample, base, tmp_path_factory) -> Path:
    """Output directory of a run with an adapter, without dropout."""
    folder = tmp_path_factory.mktemp("trained")
    still = save_base(folder / "base", sample / "tiny")
    arguments = [
        *(f"--{part}_input={sample / part}.jsonl" for part in ("train", "valid")),
        *("--max_len=48", "--batch_size=8", "--max_steps=6", "--lr=1e-2", "--seed=1"),
        *(f"--lora_rank={RANK}", f"--model_id={still}", f"--outdir={folder / 'run'}"),
    ]
    Launch(arguments, folder / "output").expect()
    return folder / "run"


def test_checkpoints_contain_only_the_trained_parameters(trained):
    model = load_model(Model, str(trained / "best"))
    own = {name: p for name, p in model.named_parameters() if p.requires_grad}
    assert all("lora_" in name or "modules_to_save" in name for name in own)
    size = sum(parameter.nbytes for parameter in own.values())
    for name in ("best", "last"):
        folder = trained / name
        assert not list(folder.glob("model*.safetensors")) and not (folder / "config.json").exists()
        tensors = load_file(folder / ADAPTER_FILE)
        assert all(key.startswith(PREFIX) for key in tensors)
        assert sum(tensor.nbytes for tensor in tensors.values()) == size
    moments = OptimizerState.load(trained / "last" / OPTIMIZER_FILE)
    assert {key.rpartition("/")[0] for key in moments.tensors} == own.keys()
    files = sum((trained / "last" / name).stat().st_size for name in (ADAPTER_FILE, OPTIMIZER_FILE))
    assert 3 * size < files < 3 * size + 1000 * len(own)  # the rest is headers


def test_only_the_adapter_of_a_classifier_contains_fully_trained_modules(trained):
    names = [key for key in read_weights(trained / "last") if "lora_" not in key]
    assert bool(names) != GENERATES
    if names:
        log = list(read_log(trained).values())
        assert log[-1]["valid_log"]["loss"] < 0.69


def test_other_tools_compute_the_same_logits(trained, tokenizer, tmp_path):
    expected = logits_of(Model.from_pretrained(trained / "best"), tokenizer)
    labels = "" if GENERATES else str(Model.from_pretrained(trained / "best").config.num_labels)
    environment = {**os.environ, "HF_HOME": str(tmp_path / "home"), "HF_HUB_OFFLINE": "1"}
    environment.pop("PYTHONPATH")
    command = [sys.executable, "-c", OPEN, str(trained / "best"), Model.auto_class.__name__, labels]
    subprocess.run(command, cwd=tmp_path, env=environment, check=True, capture_output=True)
    assert torch.equal(torch.load(tmp_path / "logits0.pt"), expected)  # loaded by PEFT
    # Before version 5.18, transformers does not load the trained head of a classifier.
    if GENERATES or Version(transformers.__version__) >= Version("5.18"):
        assert torch.equal(torch.load(tmp_path / "logits1.pt"), expected)
    bare = Model.from_pretrained(trained / "best")
    for name, parameter in bare.named_parameters():
        if "lora_B" in name:
            parameter.data.zero_()
    assert not torch.equal(logits_of(bare, tokenizer), expected)


def test_model_card_shows_how_to_load_the_adapter(trained, tokenizer):
    card = (trained / "best" / "README.md").read_text(encoding="utf-8")
    assert "A LoRA adapter for `base`, trained on `train.jsonl`" in card
    code = re.search(r"```py\n(.*?)```", card, re.DOTALL)[1]  # type: ignore[index]
    found: dict = {}
    exec(code.replace("path/to/this", str(trained / "best")), found)
    expected = logits_of(Model.from_pretrained(trained / "best"), tokenizer)
    assert torch.equal(logits_of(found["model"], found["tokenizer"]), expected)


@pytest.mark.parametrize("split", [(1, 2, 1), (1, 3, 8), (2, 2, 3)])
def test_gradients_do_not_depend_on_the_split(split, trained, sample, tmp_path):
    base = str(trained.parent / "base")
    more = ["--restore_dir", str(trained / "last"), "--model_id", base, "--max_steps", "9"]
    measure(sample, tmp_path, 8, 64, more=more)
    processes, *sizes = split
    if processes == 1:
        measure(sample, tmp_path, *sizes, more=more)
    else:
        worker = [str(sample), str(tmp_path), *map(str, sizes), *more]
        module = "helpers.gradient_worker"
        Launch(worker, tmp_path / "output", processes, module=module).expect()
    expected = load_file(tmp_path / "1-8-64.safetensors")
    gradients = load_file(tmp_path / f"{processes}-{sizes[0]}-{sizes[1]}.safetensors")
    assert gradients.keys() == expected.keys()
    least = 1e-3 * torch.stack([gradient.norm() for gradient in expected.values()]).norm()
    for name, gradient in expected.items():
        difference = (gradients[name] - gradient).norm() / torch.maximum(gradient.norm(), least)
        assert difference < 1e-5, name


@pytest.mark.parametrize("more", [["--lora_dora"], ["--base_dtype", "bfloat16"]])
def test_killed_and_resumed_run_is_bit_identical(more, lora, base, tmp_path):
    arguments = [*lora, *more, "--save_steps", "1"]
    before = base_tensors(Model.from_pretrained(base).base_model)
    train.main([*arguments, "--outdir", str(tmp_path / "whole")])
    patch = partial(seams.signals_before_step, [signal.SIGKILL], 0, 4)
    Launch(arguments, tmp_path / "output", patch=patch).expect(-signal.SIGKILL)
    assert read_state(tmp_path / "run" / "last")["step"] in (
        3,
        4,
    )  # the last save may be incomplete
    train.main(["--restore_dir", str(tmp_path / "run" / "last")])
    assert_bit_identical(tmp_path / "run", tmp_path / "whole")
    result = read_result(tmp_path / "run")
    tensors = [*result.weights.values(), *result.moments.values()]
    assert {tensor.dtype for tensor in tensors} == {torch.float32}
    frozen = base_tensors(load_model(Model, str(tmp_path / "run" / "last")).base_model)
    dtype = torch.bfloat16 if "bfloat16" in more else torch.float32
    compared = before.keys() if GENERATES else [k for k in before if k in frozen and "." in k]
    for name in compared:
        if frozen[name].shape == before[name].shape and "classif" not in name:
            assert torch.equal(frozen[name], before[name].to(dtype)), name


def test_run_resumes_with_another_number_of_processes(lora, sample, in_two_processes, tmp_path):
    still = save_base(tmp_path / "still", sample / "tiny")  # dropout masks depend on the rank
    more = ("--model_id", str(still), *lora[-6:])
    in_two_processes("whole", *more)
    in_two_processes("run", *more, "--epochs", "1")
    last = ["--restore_dir", str(tmp_path / "run" / "last"), "--epochs", "2"]
    train.main([*last, "--batch_size", "8"])
    expected = read_weights(tmp_path / "whole" / "last")
    for name, tensor in read_weights(tmp_path / "run" / "last").items():
        assert torch.allclose(tensor, expected[name], rtol=1e-3, atol=1e-4), name


def test_resumed_run_is_bit_identical_under_fsdp2(lora, in_two_processes, tmp_path):
    base, more = lora[-8:-6], (*lora[-8:], "--base_dtype", "bfloat16", "--max_steps")
    last = ("--restore_dir", str(tmp_path / "run" / "last"), *base)
    output = in_two_processes("whole", *more, "5", patch=fsdp2)
    assert "SHARDED: 0" not in output and "SHARDED" in output
    in_two_processes("run", *more, "3", patch=fsdp2)
    in_two_processes("run", *last, "--max_steps", "5", patch=fsdp2)
    result, expected = read_result(tmp_path / "run"), read_result(tmp_path / "whole")
    assert_equal_tensors(result.weights, expected.weights)
    assert_equal_tensors(result.moments, expected.moments)


def test_fsdp2_trains_the_same_adapter_as_ddp(lora, in_two_processes, tmp_path):
    in_two_processes("fsdp2", *lora[-8:], "--max_steps", "5", patch=fsdp2)
    in_two_processes("ddp", *lora[-8:], "--max_steps", "5")
    expected = read_weights(tmp_path / "fsdp2" / "last")
    for name, tensor in read_weights(tmp_path / "ddp" / "last").items():
        assert torch.allclose(tensor, expected[name], rtol=1e-3, atol=1e-4), name


def test_failed_save_keeps_the_previous_checkpoint(lora, tmp_path):
    failed = []

    def attempt(save) -> None:
        before = read_weights(tmp_path / "run" / "last")
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(atomic, "_seal", lambda _: (_ for _ in ()).throw(OSError("full")))
            with pytest.raises(RunError, match="not saved"):
                save()
        assert atomic.find_fault(tmp_path / "run" / "last") is None
        assert_equal_tensors(read_weights(tmp_path / "run" / "last"), before)
        failed.append(True)

    with seams.before_save(attempt, lambda state: state.current_epoch == 2):
        train.main(lora)
    assert failed


def gradients_of(arguments: list[str], outdir: Path) -> dict[str, torch.Tensor]:
    with open_run(Task(), [*arguments, "--outdir", str(outdir)]) as run:
        run.model.train()
        train.train_step(run, next(run.train_batches.steps()))
        return {n: p.grad for n, p in run.model.named_parameters() if p.grad is not None}


def test_gradient_checkpointing_does_not_change_the_gradient(trained, tmp_path):
    arguments = ["--restore_dir", str(trained / "last"), "--max_steps", "9"]
    expected = gradients_of(arguments, tmp_path)
    assert expected and all(gradient.any() for gradient in expected.values())
    found = gradients_of([*arguments, "--gradient_checkpointing"], tmp_path)
    assert found.keys() == expected.keys()
    for name, gradient in found.items():
        assert torch.allclose(gradient, expected[name], rtol=1e-4, atol=1e-7), name


@pytest.mark.parametrize("base_dtype", ["float32", "bfloat16"])
def test_export_merges_the_adapter_into_a_stock_checkpoint(
    base_dtype, lora, tokenizer, tmp_path, capsys
):
    train.main([*lora, "--base_dtype", base_dtype, "--max_steps", "4"])
    best, output = tmp_path / "run" / "best", tmp_path / "merged"
    export.main(["--checkpoint", str(best), "--output", str(output)])
    sentence = "the logits of the merged model differ from those with the adapter by at most"
    assert sentence in capsys.readouterr().out
    assert_merged(best, output, tokenizer)


def assert_merged(best: Path, output: Path, tokenizer) -> None:
    """Compare the exported model, loaded by transformers, with the model that has the adapter.

    The logits have to be equal up to rounding. If the model generates text, the tokens of greedy
    search have to be equal.
    """
    adapted = load_model(Model, str(best)).float()
    merged = Model.auto_class.from_pretrained(output, dtype=torch.float32)
    assert type(merged).__module__.startswith("transformers.models.")
    expected = logits_of(adapted, tokenizer)
    difference = (logits_of(merged, tokenizer) - expected).abs().max()
    assert difference < 1e-4 * expected.abs().max()
    if GENERATES:
        inputs = tokenizer(TEXT, return_tensors="pt")
        both = [
            model.generate(inputs.input_ids, max_new_tokens=16, do_sample=False)
            for model in (adapted, merged)
        ]
        assert torch.equal(*both)


@pytest.mark.skipif(not GENERATES, reason="the model has no output embeddings")
@pytest.mark.parametrize("is_tied", [True, False])
@pytest.mark.parametrize("of_the_head", [True, False])
def test_tied_embeddings_are_merged_correctly(
    is_tied, of_the_head, lora, sample, tokenizer, tmp_path
):
    """If an adapter changes only one of two tied weights, the merged model stores both weights."""
    tied = save_base(tmp_path / "tied", sample / "tiny", tie_word_embeddings=is_tied)
    arguments = [*lora, "--model_id", str(tied), "--max_steps", "4"]
    if of_the_head:
        bare = Model.from_pretrained(tied).base_model
        head = bare.get_output_embeddings()
        name = next(name for name, module in bare.named_modules() if module is head)
        arguments += ["--lora_targets", name]
    train.main(arguments)
    best, output = tmp_path / "run" / "best", tmp_path / "merged"
    if of_the_head:
        assert all(name in key for key in read_weights(best))
    export.main(["--checkpoint", str(best), "--output", str(output)])
    assert_merged(best, output, tokenizer)
    merged = Model.auto_class.from_pretrained(output)
    weights = merged.get_input_embeddings().weight, merged.get_output_embeddings().weight
    assert torch.equal(*weights) == (is_tied and not of_the_head)


def test_base_model_with_other_weights_is_refused(lora, base, sample, tmp_path):
    own = shutil.copytree(base, tmp_path / "own")
    train.main([*lora, "--model_id", str(own), "--max_steps", "2"])
    run = tmp_path / "run"
    shutil.rmtree(own)
    save_base(own, ROOT / "tiny", seed=1)
    sentence = "the weights of .*own differ from those that the adapter was trained on"
    with pytest.raises(RunError, match=sentence):
        train.main(["--restore_dir", str(run / "last"), "--max_steps", "3"])
    rows = ["--input", str(sample / "valid.jsonl"), "--output", str(tmp_path / "out.jsonl")]
    with pytest.raises(RunError, match=sentence):
        predict.main(["--checkpoint", str(run / "best"), *rows])
    shutil.rmtree(own)
    with pytest.raises(RunError, match="best: its base model .*own: no such folder"):
        predict.main(["--checkpoint", str(run / "best"), *rows])
    moved = ["--model_id", str(base)]  # the same weights in another folder
    train.main(["--restore_dir", str(run / "last"), "--max_steps", "3", *moved])
    predict.main(["--checkpoint", str(run / "last"), *rows])


@pytest.mark.parametrize(
    ("more", "sentence"),
    [
        (["--model_id", str(ROOT / "tiny")], "tiny has no weights to adapt"),
        (["--lora_targets", "nothing"], "--lora_targets nothing: no adapter can be added"),
        (["--lora_rank", "-1"], "--lora_rank -1: expected at least 0"),
        (["--lora_rank", "0", "--base_dtype", "bfloat16"], "--base_dtype bfloat16: expected --lo"),
        (["--push_to_hub", "me/mine"], "--push_to_hub me/mine: the base model of the adapter"),
        (["--lora_rank", "0", "--lora_dora"], "--lora_dora True: expected --lora_rank, too"),
    ],
)
def test_invalid_adapter_arguments_are_refused_before_training(more, sentence, lora, tmp_path):
    with pytest.raises(RunError, match=re.escape(sentence)):
        train.main([*lora, *more])
    assert not (tmp_path / "run").exists()


def test_unknown_module_among_the_targets_is_refused(lora, base):
    model = Model.from_pretrained(base)
    linear = next(n for n, m in model.base_model.named_modules() if isinstance(m, nn.Linear))
    with pytest.raises(RunError, match="has no module 'no_such_layer' that supports LoRA"):
        train.main([*lora, "--lora_targets", linear.rpartition(".")[2], "no_such_layer"])


@pytest.mark.parametrize(
    "more", [["--lora_rank", "4"], ["--lora_alpha", "7"], ["--lora_targets", "x"], ["--lora_dora"]]
)
def test_changed_adapter_arguments_are_refused_on_resume(more, trained):
    with pytest.raises(RunError, match=f"{more[0]} .*: the resumed run has"):
        train.main(["--restore_dir", str(trained / "last"), *more])


def test_adding_an_adapter_to_a_resumed_run_is_refused(arguments, tmp_path):
    train.main([*arguments, "--max_steps", "1"])
    with pytest.raises(RunError, match="--lora_rank 2: the resumed run has 0"):
        train.main(["--restore_dir", str(tmp_path / "run" / "last"), "--lora_rank", "2"])


def test_adapter_is_refused_as_base_model(arguments, trained):
    with pytest.raises(RunError, match="a PEFT adapter; .*python export.py --checkpoint"):
        train.main([*arguments, "--model_id", str(trained / "best")])


def test_adapter_for_a_rewritten_model_is_refused(lora, monkeypatch):
    forward = Model.forward

    def halved(self, *args, **kwargs):
        outputs = forward(self, *args, **kwargs)
        if outputs.logits is not None:
            outputs.logits = outputs.logits / 2
        return outputs

    halved.__signature__ = inspect.signature(forward)  # type: ignore[attr-defined]
    monkeypatch.setattr(Model, "forward", halved)
    with pytest.raises(
        RunError, match="--lora_rank 2: expected a Model that computes the same logits"
    ):
        train.main(lora)


def test_missing_peft_is_reported(lora, trained, monkeypatch):
    find = importlib.util.find_spec
    monkeypatch.setattr(importlib.util, "find_spec", lambda n, *a: n != "peft" and find(n, *a))
    with pytest.raises(
        RunError, match=re.escape("needs the package peft: pip install -e '.[lora]'")
    ):
        train.main(lora)
    with pytest.raises(RunError, match="an adapter, which needs the package peft"):
        load_model(Model, str(trained / "best"))


def test_dry_run_shows_the_memory_and_size_of_an_adapter(lora, capsys):
    train.main([*lora, "--base_dtype", "bfloat16", "--dry_run"])
    output = capsys.readouterr().out
    assert "(bfloat16, float32)" in output
    trained = int(re.search(r", ([\d,]+) trained", output)[1].replace(",", ""))  # type: ignore[index]
    assert f"adds a state of up to {8 * trained / 2**20:,.1f} MiB" in output
    assert f"best/ {4 * trained / 2**20:,.1f} MiB" in output
