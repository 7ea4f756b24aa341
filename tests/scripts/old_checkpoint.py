"""Convert a checkpoint to the layout of earlier versions, with code and prefixed tensor names.

python old_checkpoint.py FOLDER NEW_FOLDER FIELDS      (further fields of config.json, as JSON)
"""

import json
import shutil
import sys
from pathlib import Path

from safetensors.torch import load_file, save_file

from model.configuration import ModelConfig
from model.modeling import Model
from training.atomic import _seal

source, folder = map(Path, sys.argv[1:3])
fields = json.loads(sys.argv[3])
shutil.copytree(source.resolve(), folder)
(folder / "manifest.json").unlink()
(folder / "predictor_config.json").unlink()

config = json.loads((folder / "config.json").read_text(encoding="utf-8"))
auto_class = Model.auto_class.__name__
auto_map = {"AutoConfig": "configuration.ModelConfig", auto_class: "modeling.Model"}
labels = {name: config[name] for name in ("id2label", "label2id") if name in config}
own = {
    "architectures": ["Model"],
    "auto_map": auto_map,
    "base_config": config,
    "base_model_id": "tiny",
    "model_type": ModelConfig.model_type,
    **labels,
    **fields,
}
(folder / "config.json").write_text(json.dumps(own), encoding="utf-8")
for name in ("configuration", "modeling"):
    (folder / f"{name}.py").write_text("raise SystemExit('executed')", encoding="utf-8")

weights = load_file(folder / "model.safetensors")
prefix = f"{Model.base_model_prefix}."
prefixed = {prefix + name: tensor for name, tensor in weights.items()}
save_file(prefixed, folder / "model.safetensors", {"format": "pt"})
moments = load_file(folder / "optimizer.safetensors")
save_file(moments, folder / "optimizer.safetensors")  # without metadata

state = json.loads((folder / "training_state.json").read_text(encoding="utf-8"))
del state["named_losses"]
state["data"] = {"examples": state["data"]["examples"], "lengths_crc32": 1}
(folder / "training_state.json").write_text(json.dumps(state), encoding="utf-8")
_seal(folder)
