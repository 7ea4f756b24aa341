"""Checks of the model before the first step, and loading of weights."""

import json
import shutil

import pytest
import torch
from safetensors.torch import load_file, save_file
from transformers import AutoTokenizer

import train
from conftest import ROOT
from errors import RunError
from model.configuration import ModelConfig
from model.dataset import generate_dataset
from model.modeling import Model
from training.contract import ExampleSet, Task
from training.loading import build_config, build_model, load_model, load_tokenizer
from training.model_check import check_model, unused_parameters


@pytest.fixture(scope="module")
def dataset(sample, tokenizer):
    return generate_dataset(sample / "train.jsonl", tokenizer, 48)


@pytest.fixture
def model(dataset):
    torch.manual_seed(0)
    return Model(ModelConfig(str(ROOT / "tiny"), **dataset.schema))


@pytest.fixture
def base(model, tokenizer, tmp_path):
    """The folder of a base model with weights."""
    model.save_pretrained(tmp_path / "base")
    tokenizer.save_pretrained(tmp_path / "base")
    return tmp_path / "base"


def built(folder, dataset, tokenizer):
    config = build_config(Task(), str(folder), dataset.schema, tokenizer)
    return build_model(Model, config, str(folder))


def test_check_restores_model_and_random_state(model, tokenizer, dataset):
    examples = ExampleSet(dataset)
    state = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    random = torch.get_rng_state()
    model.train()
    check_model(model, tokenizer, examples, 48)
    assert unused_parameters(model, examples.batch([0])) == []
    assert torch.equal(random, torch.get_rng_state())
    assert all(module.training for module in model.modules())
    assert all(parameter.grad is None for parameter in model.parameters())
    for name, tensor in model.state_dict().items():
        assert torch.equal(tensor, state[name]), name


def test_parameter_without_a_gradient_is_found(model, dataset):
    model.register_parameter("idle", torch.nn.Parameter(torch.ones(2)))
    assert unused_parameters(model, ExampleSet(dataset).batch([0, 1])) == ["idle"]


def test_tokenizer_with_more_tokens_than_embeddings_is_rejected(model, dataset):
    tokenizer = AutoTokenizer.from_pretrained(ROOT / "tiny")
    tokenizer.add_tokens([f"<{index}>" for index in range(model.config.vocab_size)])
    with pytest.raises(RunError, match="embeddings for only"):
        check_model(model, tokenizer, ExampleSet(dataset), 48)


def test_generation_config_gets_the_end_token_of_the_tokenizer(model, tokenizer, dataset, tmp_path):
    if not model.can_generate():
        pytest.skip("the model does not generate")
    model.generation_config.eos_token_id = None
    model.generation_config.repetition_penalty = 1.5
    notes = check_model(model, tokenizer, ExampleSet(dataset), 48)
    assert any("generation stops at" in note for note in notes)
    model.save_pretrained(tmp_path)
    loaded = load_model(Model, str(tmp_path)).generation_config
    assert loaded.eos_token_id == tokenizer.eos_token_id
    assert loaded.repetition_penalty == 1.5


def test_weights_with_other_names_are_rejected(base, dataset, tokenizer):
    weights = load_file(base / "model.safetensors")
    # Clone the tensors, which may be views of the file that is overwritten below.
    prefixed = {f"_orig_mod.{name}": tensor.clone() for name, tensor in weights.items()}
    save_file(prefixed, base / "model.safetensors", {"format": "pt"})
    with pytest.raises(RunError, match=r"are missing, such as .*_orig_mod"):
        built(base, dataset, tokenizer)


def test_base_model_in_an_unknown_format_is_rejected(base, dataset, tokenizer):
    (base / "model.safetensors").rename(base / "model.msgpack")
    with pytest.raises(RunError, match="cannot load the model"):
        built(base, dataset, tokenizer)


def test_base_model_without_weights_is_reported(base, dataset, tokenizer):
    (base / "model.safetensors").unlink()
    _, notes = built(base, dataset, tokenizer)
    assert any("training from scratch" in note for note in notes)


def test_adapter_or_code_as_base_model_is_rejected(base, dataset, tokenizer, tmp_path):
    adapter = base / "adapter_config.json"
    adapter.write_text(json.dumps({"base_model_name_or_path": "org/base"}), encoding="utf-8")
    with pytest.raises(RunError, match="a PEFT adapter; expected a full model"):
        train.main(["--model_id", str(base), "--outdir", str(tmp_path / "run")])
    adapter.unlink()
    config = {"model_type": "their_own", "auto_map": {"AutoConfig": "code.Config"}}
    (base / "config.json").write_text(json.dumps(config), encoding="utf-8")
    (base / "code.py").write_text(f"import os; os.mkdir({str(tmp_path / 'executed')!r})")
    with pytest.raises(RunError, match="cannot load a configuration"):
        built(base, dataset, tokenizer)
    assert not (tmp_path / "executed").exists()


def test_tokenizer_with_other_tokens_than_its_file_is_rejected(tmp_path):
    shutil.copytree(ROOT / "tiny", tmp_path / "base")
    file = tmp_path / "base" / "tokenizer.json"
    load_tokenizer(str(tmp_path / "base"))
    tokenizer = AutoTokenizer.from_pretrained(tmp_path / "base")
    from training import loading

    tokenizer.backend_tokenizer.normalizer = None
    changed = json.loads(file.read_text(encoding="utf-8"))
    changed["normalizer"] = {"type": "Replace", "pattern": {"String": "o"}, "content": "a"}
    file.write_text(json.dumps(changed), encoding="utf-8")
    with pytest.raises(RunError, match="does not give the tokens of tokenizer.json"):
        loading._check_tokens(str(tmp_path / "base"), tokenizer)


def test_loaded_parameters_are_aligned_to_64_bytes_and_require_gradients(base):
    model = load_model(Model, str(base))
    assert all(tensor.data_ptr() % 64 == 0 for tensor in model.parameters())
    assert all(parameter.requires_grad for parameter in model.parameters())


def test_model_with_a_part_that_is_not_saved_is_rejected(dataset, tokenizer, tmp_path):
    class Distilled(Model):
        _keys_to_ignore_on_save = ["teacher.weight"]
        _keys_to_ignore_on_load_missing = ["teacher"]

        def __init__(self, config):
            super().__init__(config)
            self.teacher = torch.nn.Linear(2, 2, bias=False)

    model = Distilled(ModelConfig(str(ROOT / "tiny"), **dataset.schema))
    state = {k: v for k, v in model.state_dict().items() if not k.startswith("teacher")}
    model.saves_stock = False
    Model.save_pretrained(model, tmp_path, state_dict=state)
    with pytest.raises(RunError, match="missing keys: teacher.weight"):
        load_model(Distilled, str(tmp_path))


def test_error_about_an_argument_does_not_mention_the_base_model():
    class Refusing(Task):
        def build_config(self, *_):
            raise ValueError("--share 2.0: expected less than 1")

    with pytest.raises(RunError, match=r"^--share 2.0: expected less than 1$"):
        build_config(Refusing(), str(ROOT / "tiny"), {}, None)
