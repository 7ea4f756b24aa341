"""Every architecture that the README names, small, in the rendered projects: train, save, load."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from conftest import Render

SMALL = {
    "vocab_size": 1024,
    "hidden_size": 32,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
    "intermediate_size": 64,
    "max_position_embeddings": 80,
    "pad_token_id": 0,
    "bos_token_id": 1,
    "eos_token_id": 2,
}
GPT2 = {"vocab_size": 1024, "n_embd": 32, "n_layer": 2, "n_head": 2, "n_positions": 80}
BART = {
    "vocab_size": 1024,
    "d_model": 32,
    "encoder_layers": 1,
    "decoder_layers": 1,
    "encoder_attention_heads": 2,
    "decoder_attention_heads": 2,
    "encoder_ffn_dim": 64,
    "decoder_ffn_dim": 64,
    "max_position_embeddings": 80,
    "pad_token_id": 0,
    "eos_token_id": 2,
    "decoder_start_token_id": 2,
}
T5 = {"vocab_size": 1024, "d_model": 32, "d_kv": 16, "d_ff": 64, "num_layers": 1, "num_heads": 2}
T5["decoder_start_token_id"] = 0
DECODER = {**SMALL, "num_key_value_heads": 1}

CONFIGURATIONS: dict[str, dict[str, dict]] = {
    "classification": {
        "bert": SMALL,
        "roberta": SMALL,
        "deberta-v2": SMALL,
        "modernbert": {**SMALL, "cls_token_id": 1, "sep_token_id": 2},
        "electra": {**SMALL, "embedding_size": 32},
        "gpt2": GPT2,
        "llama": DECODER,
    },
    "seq2seq": {
        "t5": T5,
        "mt5": {**T5, "tie_word_embeddings": False},
        "bart": BART,
        "marian": BART,
        "mbart": BART,
        "m2m_100": {**BART, "encoder_layerdrop": 0.9, "decoder_layerdrop": 0.9},
        "pegasus": BART,
        "encoder-decoder": {
            "encoder": {**SMALL, "model_type": "bert"},
            "decoder": {
                **SMALL,
                "model_type": "bert",
                "is_decoder": True,
                "add_cross_attention": True,
            },
            "decoder_start_token_id": 1,
            "pad_token_id": 0,
        },
    },
    "causal_lm": {
        "gpt2": GPT2,
        "llama": DECODER,
        "qwen2": {**DECODER, "tie_word_embeddings": True},
        "qwen3": DECODER,
        "gpt_neox": SMALL,
    },
}

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
    ("task", "kind"), [(task, kind) for task in CONFIGURATIONS for kind in CONFIGURATIONS[task]]
)
def test_architecture(task: str, kind: str, render: Render, tmp_path: Path) -> None:

    options = json.dumps(CONFIGURATIONS[task][kind])
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
