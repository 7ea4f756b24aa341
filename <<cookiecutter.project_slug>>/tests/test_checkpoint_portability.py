"""Checkpoints can be loaded in an empty folder, offline, and as the base model of another run."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from conftest import ROOT
from helpers.model_folder import files_of_model_in
from helpers.processes import Launch
from model.configuration import ModelConfig
from model.dataset import generate_dataset
from model.modeling import Model
from training.loading import load_model

pytestmark = pytest.mark.proof

AUTO_CLASS = Model._auto_class
BASE_TYPE = json.loads((ROOT / "tiny" / "config.json").read_text("utf-8"))["model_type"]
OPEN = """
import json, sys
import torch, transformers
name, trust, text = sys.argv[1], sys.argv[2] == "code", "Do you see it?"
auto = getattr(transformers, name)
for number, path in enumerate(sys.argv[3:]):
    model = auto.from_pretrained(path, trust_remote_code=trust).eval()
    tokenizer = transformers.AutoTokenizer.from_pretrained(path, trust_remote_code=False)
    inputs = tokenizer(text, return_tensors="pt")
    inputs = {key: inputs[key] for key in ("input_ids", "attention_mask")}
    if model.config.is_encoder_decoder and model.can_generate():
        inputs["decoder_input_ids"] = inputs["input_ids"]
    torch.save(model(**inputs).logits.detach(), f"logits{number}.pt")
    half = auto.from_pretrained(path, trust_remote_code=trust, dtype=torch.bfloat16)
    dtypes = sorted({str(p.dtype) for p in half.parameters()})
    found = {"module": type(model).__module__, "dtypes": dtypes}
    body = transformers.AutoModel.from_pretrained(path, trust_remote_code=trust)
    found["embeddings"] = body.get_input_embeddings().num_embeddings
    if model.can_generate():
        settings = {"max_new_tokens": 5, "min_new_tokens": 5}
        found["new"] = model.generate(inputs["input_ids"], **settings).shape[1]
    print(json.dumps(found))
"""
# A rewritten model: it divides the logits by a buffer that is not saved, and freezes a parameter.
HALVED = """
class Model(Model):
    def __init__(self, config):
        super().__init__(config)
        self.register_buffer("divisor", torch.tensor(float(DIVISOR)), persistent=False)
        next(self.parameters()).requires_grad_(False)

    def forward(self, *args, **kwargs):
        outputs = super().forward(*args, **kwargs)
        if outputs.logits is not None:
            outputs.logits = outputs.logits / self.divisor
        return outputs


import torch
Model.register_for_auto_class(AUTO)
"""


def in_empty_folder(folder: Path, code: str, *arguments: str) -> str:
    """Run Python code in an empty folder, offline and without the project on the path."""
    folder.mkdir()
    environment = {**os.environ, "HF_HOME": str(folder / "home"), "HF_HUB_OFFLINE": "1"}
    environment.pop("PYTHONPATH")
    done = subprocess.run(
        [sys.executable, "-c", code, *arguments],
        cwd=folder,
        env=environment,
        stdin=subprocess.DEVNULL,  # a prompt, as for trust_remote_code, would fail
        capture_output=True,
        text=True,
        timeout=120,
    )
    assert done.returncode == 0, done.stderr
    return done.stdout


def name_of(checkpoint: Path) -> str:
    config = json.loads((checkpoint / "config.json").read_text(encoding="utf-8"))
    return next(
        (name for name in config.get("auto_map", {}) if name.startswith("AutoModelFor")),
        Model.auto_class.__name__,
    )


def logits_of(model, tokenizer) -> torch.Tensor:
    ids = tokenizer("Do you see it?", return_tensors="pt").input_ids
    inputs = {"input_ids": ids, "attention_mask": torch.ones_like(ids)}
    if model.config.is_encoder_decoder and model.can_generate():
        inputs["decoder_input_ids"] = ids
    with torch.no_grad():
        return model.eval()(**inputs).logits


@pytest.fixture(scope="module")
def run(sample, tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("portable")
    files = [f"--{part}_input={sample / part}.jsonl" for part in ("train", "valid")]
    arguments = [*files, f"--model_id={ROOT / 'tiny'}", "--max_len=48", "--max_steps=1"]
    Launch([*arguments, f"--outdir={folder / 'run'}"], folder / "output").expect()
    return folder / "run"


@pytest.fixture
def rewritten(sample, tokenizer, tmp_path):
    """Return a function that saves a model with a rewritten `forward` and returns its folder."""

    def save(divisor: int) -> Path:
        project = tmp_path / f"project{divisor}"
        (project / "model").mkdir(parents=True)
        for file in (ROOT / "model").glob("*.py"):
            (project / "model" / file.name).write_bytes(file.read_bytes())
        more = HALVED.replace("DIVISOR", str(divisor)).replace("AUTO", repr(AUTO_CLASS))
        with (project / "model" / "modeling.py").open("a", encoding="utf-8") as file:
            file.write(more)
        schema = generate_dataset(sample / "train.jsonl", tokenizer, 48).schema
        with files_of_model_in(str(project / "model")):
            from model.modeling import Model

            torch.manual_seed(0)
            model = Model(Model.config_class(str(ROOT / "tiny"), **schema))
            model.save_pretrained(project / "best")
        tokenizer.save_pretrained(project / "best")
        return project / "best"

    return save


def test_stock_checkpoint_opens_in_an_empty_folder(run, tokenizer, tmp_path):
    checkpoints = [run / "best", run / "last"]
    auto = name_of(checkpoints[0])
    out = in_empty_folder(tmp_path / "empty", OPEN, auto, "stock", *map(str, checkpoints))
    for number, (checkpoint, line) in enumerate(zip(checkpoints, out.splitlines(), strict=True)):
        config = (checkpoint / "config.json").read_text(encoding="utf-8")
        assert "auto_map" not in json.loads(config)
        assert json.loads(config)["model_type"] == BASE_TYPE
        assert not list(checkpoint.glob("*.py"))
        assert str(ROOT) not in config + (checkpoint / "tokenizer_config.json").read_text()
        found = json.loads(line)
        assert found["module"].startswith("transformers.models.")
        assert found["dtypes"] == ["torch.bfloat16"]
        assert found.get("new", 5) >= 5
        logits = torch.load(tmp_path / "empty" / f"logits{number}.pt")
        assert torch.equal(logits, logits_of(Model.from_pretrained(checkpoint), tokenizer))


def test_two_rewritten_models_run_their_own_code_in_one_process(rewritten, tokenizer, tmp_path):
    two, four = rewritten(2), rewritten(4)
    auto = name_of(two)
    code = "\n".join(
        [
            "import sys, torch, transformers",
            f"models = [transformers.{auto}.from_pretrained(p, trust_remote_code=True).eval()",
            "          for p in sys.argv[1:]]",
            "print([type(model).__bases__[0].__name__ for model in models])",
            "ids = torch.tensor([[1, 2, 3, 1]])",
            "inputs = {'input_ids': ids, 'attention_mask': torch.ones_like(ids)}",
            "if models[0].config.is_encoder_decoder and models[0].can_generate():",
            "    inputs['decoder_input_ids'] = ids",
            "two, four = (model(**inputs).logits for model in models)",
            "assert torch.equal(two, 2 * four)",
            "assert models[1].can_generate() == models[0].can_generate()",
        ]
    )
    in_empty_folder(tmp_path / "empty", code, str(two), str(four))


def test_a_rewritten_model_is_saved_with_its_code(rewritten, tmp_path):
    checkpoint = rewritten(2)
    config = json.loads((checkpoint / "config.json").read_text(encoding="utf-8"))
    assert {"AutoConfig", "AutoModel", Model._auto_class} == config["auto_map"].keys()
    assert str(ROOT) not in json.dumps(config)
    out = in_empty_folder(tmp_path / "empty", OPEN, name_of(checkpoint), "code", str(checkpoint))
    found = json.loads(out.splitlines()[-1])
    assert "transformers_modules" in found["module"]
    assert found["dtypes"] == ["torch.bfloat16"]
    assert found.get("new", 5) >= 5


def test_unsaved_buffers_and_frozen_parameters_are_restored(rewritten, tmp_path):
    checkpoint = rewritten(4)
    with files_of_model_in(str(checkpoint.parent / "model")):
        from model.modeling import Model

        model = load_model(Model, str(checkpoint))
        assert model.divisor == 4
        assert Model.from_pretrained(checkpoint).divisor == 4
    trained = [parameter.requires_grad for parameter in model.parameters()]
    assert trained == [False, *[True] * (len(trained) - 1)]


def test_stock_form_is_not_chosen_for_a_model_with_an_additional_parameter(
    sample, tokenizer, tmp_path
):
    schema = generate_dataset(sample / "train.jsonl", tokenizer, 48).schema
    model = Model(ModelConfig(str(ROOT / "tiny"), **schema))
    model.register_parameter("scale", torch.nn.Parameter(torch.ones(1)))
    assert "scale" in model.choose_form()
    assert not model.saves_stock


def test_a_new_run_can_start_from_a_checkpoint(run, sample, tokenizer, tmp_path):
    files = [f"--{part}_input={sample / part}.jsonl" for part in ("train", "valid")]
    outdir = tmp_path / "run"
    arguments = [*files, f"--model_id={run / 'best'}", "--max_len=48", "--lr=1e-12"]
    Launch([*arguments, "--max_steps=1", f"--outdir={outdir}"], tmp_path / "output").expect()
    models = [load_model(Model, str(folder / "best")) for folder in (run, outdir)]
    torch.testing.assert_close(*(logits_of(model, tokenizer) for model in models))
    configs = [
        json.loads((folder / "best" / "config.json").read_text()) for folder in (run, outdir)
    ]
    assert configs[0] == configs[1]


def test_arguments_and_methods_that_other_libraries_use_are_supported(run, tokenizer):
    model = Model.from_pretrained(run / "best")
    rows = model.get_input_embeddings().num_embeddings
    model.resize_token_embeddings(rows + 8)
    assert model.get_input_embeddings().num_embeddings == model.config.vocab_size == rows + 8
    ids = tokenizer("Do you see it?", return_tensors="pt").input_ids
    outputs = model(input_ids=ids, output_hidden_states=True, **_decoder(model, ids))
    names = ("hidden_states", "encoder_hidden_states", "decoder_hidden_states")
    assert any(outputs.get(name) is not None for name in names)
    as_tuple = model(input_ids=ids, return_dict=False, **_decoder(model, ids))
    assert torch.equal(as_tuple[0], outputs.logits)
    embeds = model.get_input_embeddings()(ids)
    if not model.config.is_encoder_decoder:  # BART derives decoder inputs from input_ids
        by_embeds = model(inputs_embeds=embeds, attention_mask=torch.ones_like(ids)).logits
        torch.testing.assert_close(by_embeds, model(input_ids=ids).logits)


def _decoder(model, ids: torch.Tensor) -> dict[str, torch.Tensor]:
    is_needed = model.config.is_encoder_decoder and model.can_generate()
    return {"decoder_input_ids": ids} if is_needed else {}
