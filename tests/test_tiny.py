"""The base models `tiny` are compatible with other tools; a script generates one of them again."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import transformers

from conftest import ROOT, TASKS, about, contents
from running import run_python
from scripts.make_samples import read, save_tagger

SMALLEST_HEAD = 32  # smallest size of an attention head that vLLM supports on a CPU

DESCRIBE = """
import json, sys
from transformers import AutoConfig, AutoTokenizer
folder, *texts = sys.argv[1:]
config, tokenizer = AutoConfig.from_pretrained(folder), AutoTokenizer.from_pretrained(folder)

def strings(value):
    if isinstance(value, str):
        return [value]
    if not isinstance(value, (dict, list)):
        return []
    parts = [v for k, v in value.items() if k != "label"] if isinstance(value, dict) else value
    return [text for part in parts for text in strings(part)]

texts = strings([json.loads(line) for line in open(texts[0], encoding="utf-8")])
ids = {i for row in tokenizer(texts, verbose=False)["input_ids"] for i in row}
print(json.dumps({
    "head": getattr(config, "head_dim", config.hidden_size // config.num_attention_heads),
    "rows": config.vocab_size,
    "tokens": len(tokenizer),
    "special": [tokenizer.pad_token, tokenizer.eos_token, tokenizer.bos_token],
    "unknown": tokenizer.unk_token,
    "is_seen": tokenizer.unk_token_id in ids,
    "ids": [config.pad_token_id, config.eos_token_id, config.bos_token_id],
    "expected_ids": [tokenizer.pad_token_id, tokenizer.eos_token_id, tokenizer.bos_token_id],
}))
"""

# Compare scores or hidden states instead of the best tokens: with random weights, the scores of
# different tokens are almost equal, and the best token can depend on rounding.
COMPARE = """
import json, sys, ctranslate2, numpy, torch, transformers
from ctranslate2.converters import TransformersConverter
auto_class, base, data, out = sys.argv[1:]
torch.manual_seed(0)
config = transformers.AutoConfig.from_pretrained(base)
model = getattr(transformers, auto_class).from_config(config).eval()
tokenizer = transformers.AutoTokenizer.from_pretrained(base)
model.save_pretrained(out)
tokenizer.save_pretrained(out)
converted = TransformersConverter(out).convert(out + "/converted")
rows = [json.loads(line) for line in open(data, encoding="utf-8")][:8]
texts = [[m["content"] for m in row["messages"]] if "messages" in row else list(row.values())
         for row in rows]

def tokens(text):
    ids = tokenizer(text, truncation=True, max_length=64).input_ids
    return torch.tensor([ids]), tokenizer.convert_ids_to_tokens(ids)

for source, target in [(row[0], row[-1]) for row in texts]:
    ids, words = tokens(source)
    if auto_class == "AutoModelForSeq2SeqLM":
        labels, target_words = tokens(target)
        found = ctranslate2.Translator(converted).score_batch([words], [target_words[:-1]])[0]
        expected = model(input_ids=ids, labels=labels).logits.log_softmax(-1)[0].gather(1, labels.T)
        assert torch.allclose(torch.tensor(found.log_probs), expected[:, 0], atol=1e-4)
    elif auto_class == "AutoModelForCausalLM":
        found = ctranslate2.Generator(converted).forward_batch([words])
        expected = model(input_ids=ids).logits
        assert torch.allclose(torch.tensor(numpy.array(found)), expected, atol=1e-4)
    else:
        found = ctranslate2.Encoder(converted).forward_batch([words]).last_hidden_state
        expected = model.base_model(ids).last_hidden_state
        assert torch.allclose(torch.tensor(numpy.array(found)), expected, atol=1e-4)
"""


def folders_of(task: str) -> tuple[Path, Path]:
    """Return the folder of the task's base model, and the file of its training data."""
    folder = ROOT / "templates" / task
    return folder / "tiny", folder / "data" / "train.jsonl"


def test_tiny_has_the_settings_and_tokens_that_tools_require(task: str) -> None:
    tiny, data = folders_of(task)
    found = json.loads(run_python(ROOT, "-c", DESCRIBE, tiny, data).stdout)
    assert found["head"] >= SMALLEST_HEAD
    assert found["rows"] == found["tokens"]
    assert all(found["special"]) and found["ids"] == found["expected_ids"]
    assert found["unknown"] and not found["is_seen"]


def test_ctranslate2_computes_the_same_scores_or_hidden_states(task: str, tmp_path: Path) -> None:
    pytest.importorskip("ctranslate2", reason="ctranslate2 is not installed")
    tiny, data = folders_of(task)
    run_python(ROOT, "-c", COMPARE, about(task)["auto_class"], tiny, data, tmp_path)


def test_script_generates_the_bytes_of_the_saved_tagger(tmp_path: Path) -> None:
    tiny, data = folders_of("token_classification")
    save_tagger(list(read(data)), tmp_path)
    made, expected = contents(tmp_path / "tiny"), contents(tiny)
    assert made.keys() == expected.keys()
    different = [name for name in made if made[name] != expected[name]]
    if transformers.__version__ != json.loads(expected["config.json"])["transformers_version"]:
        different = [name for name in different if not name.endswith("config.json")]
    assert different == []


def test_all_base_models_were_generated_with_one_version_of_transformers() -> None:
    tinies = [ROOT / "templates" / task / "tiny" for task in TASKS]
    made = [json.loads((tiny / "config.json").read_text(encoding="utf-8")) for tiny in tinies]
    assert len({config["transformers_version"] for config in made}) == 1
