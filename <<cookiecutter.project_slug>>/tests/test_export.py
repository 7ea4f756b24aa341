"""export.py writes a checkpoint in another dtype or as ONNX, with the settings of predict.py."""

import importlib.util
import shutil
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file
from transformers import AutoTokenizer

import export
from conftest import ROOT
from errors import RunError
from model.configuration import ModelConfig
from model.dataset import generate_dataset
from model.modeling import Model
from training.command_line import DTYPES
from training.contract import Task
from training.loading import load_model
from training.predictor_config import PREDICTOR_FILE, PredictorConfig

MISSING = [name for name in export.ONNX_PACKAGES if not importlib.util.find_spec(name)]


@pytest.fixture(scope="module")
def checkpoint(sample, tokenizer, tmp_path_factory) -> Path:
    schema = generate_dataset(sample / "train.jsonl", tokenizer, 48).schema
    folder = tmp_path_factory.mktemp("export") / "best"
    torch.manual_seed(0)
    Model(ModelConfig(str(ROOT / "tiny"), **schema)).save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    settings = PredictorConfig(48, schema, {})
    (folder / PREDICTOR_FILE).write_text(settings.to_text(), encoding="utf-8")
    return folder


@pytest.mark.parametrize("dtype", DTYPES)
def test_exported_weights_are_those_of_the_checkpoint_converted_to_the_dtype(
    dtype, checkpoint, tmp_path
):
    output = tmp_path / "exported"
    export.main(["--checkpoint", str(checkpoint), "--output", str(output), "--dtype", dtype])
    weights = load_file(checkpoint / "model.safetensors")
    exported = load_file(output / "model.safetensors")
    assert exported.keys() == weights.keys()
    for name, tensor in weights.items():
        assert torch.equal(exported[name], tensor.to(getattr(torch, dtype))), name
    load_model(Task().model_class, str(output))
    assert PredictorConfig.read(str(output)) == PredictorConfig.read(str(checkpoint))
    text = "Do you see it?"
    tokens = AutoTokenizer.from_pretrained(output)(text)
    assert tokens["input_ids"] == AutoTokenizer.from_pretrained(checkpoint)(text)["input_ids"]


def test_nonempty_output_folder_and_onnx_in_another_precision_are_refused(checkpoint, tmp_path):
    arguments = ["--checkpoint", str(checkpoint), "--output", str(tmp_path)]
    (tmp_path / "file").touch()
    with pytest.raises(RunError, match="is not an empty folder; expected a new or empty one"):
        export.main(arguments)
    (tmp_path / "file").unlink()
    with pytest.raises(RunError, match="--onnx: model.onnx is written in float32"):
        export.main([*arguments, "--onnx", "--dtype", "bfloat16"])


@pytest.mark.skipif(Model.can_generate(), reason="ONNX is refused for models that generate text")
def test_onnx_export_without_a_tokenizer_is_refused(checkpoint, monkeypatch, tmp_path):
    monkeypatch.setattr(export, "require", lambda *_: None)  # the ONNX packages are optional
    monkeypatch.setattr(Task, "needs_tokenizer", False)
    arguments = ["--checkpoint", str(checkpoint), "--output", str(tmp_path / "exported"), "--onnx"]
    with pytest.raises(RunError, match="--onnx: the task has no tokenizer"):
        export.main(arguments)
    assert not (tmp_path / "exported").exists()


def test_weights_too_large_for_a_dtype_are_refused(checkpoint, tmp_path):
    large = shutil.copytree(checkpoint, tmp_path / "large")
    # Clone the tensors, which may be views of the file that is overwritten below.
    loaded = load_file(large / "model.safetensors")
    weights = {key: tensor.clone() for key, tensor in loaded.items()}
    next(iter(weights.values())).view(-1)[0] = 1e5
    save_file(weights, large / "model.safetensors", {"format": "pt"})
    arguments = ["--checkpoint", str(large), "--output", str(tmp_path / "exported")]
    with pytest.raises(RunError, match="--dtype float16: .* values out of the range of float16"):
        export.main([*arguments, "--dtype", "float16"])
    assert not (tmp_path / "exported").exists()


@pytest.mark.parametrize("place", ["/no/such/folder", "not a name"])
def test_missing_checkpoint_has_no_settings(place):
    assert PredictorConfig.read(place) is None  # then loading the model reports the reason


def test_output_folder_that_cannot_be_written_is_refused(checkpoint, tmp_path):
    (tmp_path / "file").touch()
    with pytest.raises(RunError, match="not saved"):
        export.main(["--checkpoint", str(checkpoint), "--output", str(tmp_path / "file" / "new")])
    with pytest.raises(RunError, match="is not an empty folder"):
        export.main(["--checkpoint", str(checkpoint), "--output", str(tmp_path / "file")])


def test_onnx_export_is_compared_with_the_model_or_refused(checkpoint, tmp_path, capsys):
    arguments = ["--checkpoint", str(checkpoint), "--output", str(tmp_path), "--onnx"]
    if MISSING:
        with pytest.raises(RunError, match=f"--onnx needs the package {MISSING[0]}: pip install"):
            export.main(arguments)
    elif Model.can_generate():
        with pytest.raises(RunError, match="the model generates text; expected a classifier"):
            export.main(arguments)
    else:
        export.main(arguments)
        assert (tmp_path / "model.onnx").is_file()
        assert "its logits agree with those of the model" in capsys.readouterr().out
        return
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("content", [b"\x80\x04K.", b"[]", b'{"max_len": 48}'])
def test_damaged_settings_of_predict_py_are_refused(content, tmp_path):
    (tmp_path / PREDICTOR_FILE).write_bytes(content)
    with pytest.raises(RunError, match=f"{PREDICTOR_FILE}: not the settings of predict.py"):
        PredictorConfig.read(str(tmp_path))
    (tmp_path / PREDICTOR_FILE).unlink()
    assert PredictorConfig.read(str(tmp_path)) is None
