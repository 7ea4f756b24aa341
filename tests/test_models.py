"""Every architecture that a task's folder names, small, in its project: train, save, load."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from conftest import TASKS, Render, about

SMALL = {
    "vocab_size": 1088,
    "hidden_size": 32,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
    "intermediate_size": 64,
    "max_position_embeddings": 80,
    "pad_token_id": 0,
    "bos_token_id": 1,
    "eos_token_id": 2,
}
GPT2 = {"vocab_size": 1088, "n_embd": 32, "n_layer": 2, "n_head": 2, "n_positions": 80}
DECODER = {**SMALL, "num_key_value_heads": 1}

SCRIPT = """
import json, sys, torch
from transformers import AutoConfig
from model.configuration import ModelConfig
from model.dataset import generate_dataset
from model.modeling import Model
kind, options, out = sys.argv[1], json.loads(sys.argv[2]), sys.argv[3]
AutoConfig.for_model(kind, **options).save_pretrained(out + "/base")
dataset = generate_dataset("data/valid.jsonl", max_len=48)
batch = dataset.collate([dataset[0], dataset[1], dataset[2]])
model = Model(ModelConfig(out + "/base", **dataset.schema)).train()
optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
loss = model(**batch).loss
loss.backward()
unused = [name for name, p in model.named_parameters() if p.requires_grad and p.grad is None]
assert not unused, unused
optimizer.step()
assert torch.isfinite(loss)
model.save_pretrained(out + "/saved")
loaded = Model.from_pretrained(out + "/saved")
saved_state, loaded_state = model.state_dict(), loaded.state_dict()
for name, tensor in saved_state.items():
    assert torch.equal(tensor, loaded_state[name]), name
count = lambda m: len({p.data_ptr() for p in m.parameters()})
assert count(model) == count(loaded), "ties lost"
assert torch.equal(model.eval()(**batch).loss, loaded.eval()(**batch).loss)
if model.can_generate():
    ids = batch["input_ids"][:1]
    one = {"input_ids": ids, "attention_mask": torch.ones_like(ids)}
    assert loaded.generate(**one, max_new_tokens=4, pad_token_id=0).ndim == 2
"""


@pytest.mark.parametrize(
    ("task", "kind"), [(task, kind) for task in TASKS for kind in about(task)["architectures"]]
)
def test_architecture(task: str, kind: str, render: Render, tmp_path: Path) -> None:
    options = json.dumps(about(task)["architectures"][kind])
    done = subprocess.run(
        [sys.executable, "-c", SCRIPT, kind, options, str(tmp_path)],
        cwd=render(task=task),
        env={**os.environ, "HF_HUB_OFFLINE": "1", "OMP_NUM_THREADS": "1"},
        capture_output=True,
        text=True,
        timeout=300,
    )
    assert done.returncode == 0, done.stderr[-3000:]


LINEAR_HEAD = """
import json, sys, torch
from transformers import AutoConfig
from model import loss
from model.configuration import ModelConfig
from model.dataset import generate_dataset
from model.modeling import Model
kind, options, out = sys.argv[1], json.loads(sys.argv[2]), sys.argv[3]
AutoConfig.for_model(kind, **options).save_pretrained(out + "/base")
dataset = generate_dataset("data/valid.jsonl", max_len=48)
batch = dataset.collate([dataset[0], dataset[1], dataset[len(dataset) - 1]])
model = Model(ModelConfig(out + "/base", **dataset.schema))
loss.LOGITS_AT_ONCE = 10 * 1024  # several parts
for module in model.modules():
    if isinstance(module, torch.nn.Dropout):
        module.p = 0.0

def results(**options):
    model.zero_grad()
    outputs = model(**batch, num_items_in_batch=100, **options)
    outputs.loss.backward()
    return outputs.loss, {name: p.grad.clone() for name, p in model.named_parameters()}

(with_head, head_grads), (whole, grads) = results(), results(return_logits=True)
torch.testing.assert_close(with_head, whole)
torch.testing.assert_close(head_grads, grads, rtol=1e-4, atol=1e-7)
assert (model(**batch).logits is None) == model.config.has_linear_head
with torch.no_grad():
    torch.testing.assert_close(model(**batch, num_items_in_batch=100).loss, whole)
print(model.config.has_linear_head)
"""


@pytest.mark.parametrize(
    ("kind", "options", "has_linear_head"),
    [
        ("gpt2", GPT2, True),
        ("qwen2", {**DECODER, "tie_word_embeddings": True}, True),
        ("gptj", {**GPT2, "rotary_dim": 8}, True),  # with a bias
        ("gemma2", {**DECODER, "head_dim": 16, "final_logit_softcapping": 30.0}, False),
        ("granite", {**DECODER, "logits_scaling": 2.0}, False),
        ("bert", {**SMALL, "is_decoder": True}, False),  # with a layer of its own
    ],
)
def test_the_loss_that_holds_no_logits_is_the_same(
    kind: str, options: dict, has_linear_head: bool, render: Render, tmp_path: Path
) -> None:
    done = subprocess.run(
        [sys.executable, "-c", LINEAR_HEAD, kind, json.dumps(options), str(tmp_path)],
        cwd=render(task="causal_lm"),
        env={**os.environ, "HF_HUB_OFFLINE": "1", "OMP_NUM_THREADS": "1"},
        capture_output=True,
        text=True,
        timeout=300,
    )
    assert done.returncode == 0, done.stderr[-3000:]
    assert done.stdout.splitlines()[-1] == str(has_linear_head)
