"""best/ opens from an empty folder, offline, without the project: as any model of the Hub does."""

import json
import os
import subprocess
import sys

import pytest

from helpers.processes import Launch
from model.configuration import ModelConfig

OPEN = """
import json, sys
import transformers
path, auto_class, pipeline = sys.argv[1:]
model = getattr(transformers, auto_class).from_pretrained(path, trust_remote_code=True)
tokenizer = transformers.AutoTokenizer.from_pretrained(path)
inputs = tokenizer("Do you see it?", return_tensors="pt")
inputs = {name: inputs[name] for name in ("input_ids", "attention_mask")}
found = {"module": type(model).__module__, "parameters": model.num_parameters()}
if model.can_generate():
    found["generated"] = model.generate(**inputs, max_new_tokens=5, min_new_tokens=5).shape[1]
else:
    found["labels"] = list(model.config.id2label.values())
    found["logits"] = model(**inputs).logits.shape[-1]
supported = transformers.pipelines.SUPPORTED_TASKS.get(pipeline, {"pt": ()})["pt"]
if auto_class in [known.__name__ for known in supported]:  # there is none from text to text
    use = transformers.pipeline(pipeline, model=path, trust_remote_code=True)
    options = {"max_new_tokens": 5} if model.can_generate() else {}
    found["pipeline"] = use("Do you see it?", **options)
print(json.dumps(found, default=float))  # NumPy's numbers, in some pipelines
"""


@pytest.mark.parametrize("name", ["best", "last"])
def test_a_checkpoint_opens_without_the_project(name, arguments, tmp_path):
    assert Launch([*arguments, "--max_steps", "1"], tmp_path / "output").wait() == [0]
    folder = tmp_path / "run" / name
    config = json.loads((folder / "config.json").read_text())
    auto_class = next(name for name in config["auto_map"] if name != "AutoConfig")
    (tmp_path / "empty").mkdir()
    environment = {**os.environ, "HF_HOME": str(tmp_path / "home"), "HF_HUB_OFFLINE": "1"}
    environment.pop("PYTHONPATH")
    done = subprocess.run(
        [sys.executable, "-c", OPEN, str(folder), auto_class, ModelConfig.pipeline_tag],
        cwd=tmp_path / "empty",
        env=environment,
        capture_output=True,
        text=True,
        timeout=120,
    )
    assert done.returncode == 0, done.stderr
    found = json.loads(done.stdout.splitlines()[-1])
    assert "transformers_modules" in found["module"]
    if "generated" in found:
        assert found["generated"] >= 5
    else:
        assert found["logits"] == len(found["labels"])
        for answer in found["pipeline"]:
            assert set(found["labels"]).intersection(map(str, answer.values()))
    if "generated" in found and "pipeline" in found:
        assert found["pipeline"][0]["generated_text"].startswith("Do you see it?")
