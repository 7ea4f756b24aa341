"""Small models of the architectures in task.json can be checked, trained, saved and loaded."""

from __future__ import annotations

import json
import os
from pathlib import Path

import pytest

from conftest import TASKS, Render, about
from running import run_python

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

# Values for small models: sizes, under all names that the configurations use, and token ids.
SIZES = {
    **dict.fromkeys(("hidden_size", "d_model", "n_embd", "embedding_size", "emb_dim"), 32),
    **dict.fromkeys(("num_hidden_layers", "n_layer", "n_layers", "num_layers"), 2),
    **dict.fromkeys(("encoder_layers", "decoder_layers", "num_decoder_layers"), 1),
    **dict.fromkeys(("num_attention_heads", "n_head", "n_heads", "num_heads"), 4),
    **dict.fromkeys(("attention_heads", "encoder_attention_heads", "decoder_attention_heads"), 4),
    **dict.fromkeys(("intermediate_size", "ffn_dim", "n_inner", "d_ff", "d_inner"), 64),
    **dict.fromkeys(("encoder_ffn_dim", "decoder_ffn_dim"), 64),
    **dict.fromkeys(("max_position_embeddings", "n_positions", "n_ctx", "context_length"), 128),
    **dict.fromkeys(("num_key_value_heads", "multi_query_group_num", "num_experts_per_tok"), 2),
    **dict.fromkeys(("num_local_experts", "num_experts", "n_routed_experts"), 4),
    **{"head_dim": 8, "d_kv": 8, "rotary_dim": 4, "word_embed_proj_dim": 32, "sliding_window": 8},
    **{"moe_intermediate_size": 16, "vocab_size": 1100, "state_size": 8, "rms_norm_eps": 1e-6},
    **{"pad_token_id": 0, "bos_token_id": 1, "eos_token_id": 2, "decoder_start_token_id": 0},
}
SCRIPT = """
import json, sys, torch, transformers
from transformers import AutoConfig, CONFIG_MAPPING
from errors import RunError
from model.dataset import generate_dataset
from model.modeling import Model
from training.contract import ExampleSet, Task
from training.loading import build_config, build_model, load_model, load_tokenizer
from training.model_check import check_model, unused_parameters

transformers.logging.disable_progress_bar()
tokenizer = load_tokenizer("tiny")
data = generate_dataset("data/valid.jsonl", tokenizer, 48)
examples = ExampleSet(data)
batch = examples.batch([0, 1, 2])
inputs = {name: value for name, value in batch.items() if isinstance(value, torch.Tensor)}

def small(kind, sizes):
    config = CONFIG_MAPPING[kind]()
    values = config.to_dict()
    known = {n: v for n, v in sizes.items() if n in values or n in config.attribute_map}
    for alias, name in config.attribute_map.items():
        if alias in known and name in known:
            known.pop(alias)
    return known

def try_one(kind, options, folder):
    torch.manual_seed(0)
    AutoConfig.for_model(kind, **options).save_pretrained(folder + "/base")
    config = build_config(Task(), folder + "/base", data.schema, tokenizer)
    model, _ = build_model(Model, config, folder + "/base")
    notes = check_model(model, tokenizer, examples, 48)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    unused = set(unused_parameters(model, batch))
    loss = model.train()(**inputs).loss
    loss.backward()
    for name, parameter in model.named_parameters():
        is_idle = parameter.requires_grad and parameter.grad is None
        assert not is_idle or name in unused, name
    optimizer.step()
    assert torch.isfinite(loss)
    model.save_pretrained(folder + "/saved")
    loaded = load_model(Model, folder + "/saved")
    for name, tensor in model.state_dict().items():
        assert torch.equal(tensor, loaded.state_dict()[name]), name
    count = lambda m: len({p.data_ptr() for p in m.parameters()})
    assert count(model) == count(loaded), "a tied weight is not tied after loading"
    assert torch.equal(model.eval()(**inputs).loss, loaded.eval()(**inputs).loss)
    if model.can_generate():
        ids = inputs["input_ids"][:1]
        loaded.generate(ids, attention_mask=torch.ones_like(ids), max_new_tokens=2)
    return "stock" if model.saves_stock else notes[-1]

kinds, sizes, out = json.load(sys.stdin), json.loads(sys.argv[1]), sys.argv[2]
for kind, options in kinds.items():
    try:
        result = try_one(kind, small(kind, sizes) if options is None else options, f"{out}/{kind}")
    except RunError as error:
        result = f"rejected: {error}"
    except Exception as error:
        result = f"{type(error).__name__}: {error}"
    print(json.dumps([kind, result]), flush=True)
"""


def results(project: Path, kinds: dict, out: Path) -> dict[str, str]:
    lines = run_python(
        project, "-c", SCRIPT, json.dumps(SIZES), out, typed=json.dumps(kinds)
    ).stdout.splitlines()
    return dict(json.loads(line) for line in lines if line.startswith("["))


@pytest.mark.parametrize("task", TASKS)
def test_architectures_are_trained_and_have_stock_checkpoints(
    task: str, render: Render, tmp_path: Path
) -> None:
    kinds = about(task)["architectures"]
    assert results(render(task=task), kinds, tmp_path) == dict.fromkeys(kinds, "stock")


def test_base_model_that_is_not_causal_is_rejected(render: Render, tmp_path: Path) -> None:
    kinds = {"bert": SMALL, "roberta": SMALL, "electra": {**SMALL, "embedding_size": 32}}
    found = results(render(task="causal_lm"), kinds, tmp_path)
    assert all("depend on later tokens" in result for result in found.values()), found


@pytest.mark.skipif("TEST_ALL" not in os.environ, reason="takes minutes")
@pytest.mark.parametrize("task", TASKS)
def test_architectures_of_the_sweep_are_trained_or_rejected(
    task: str, render: Render, tmp_path: Path
) -> None:
    kinds = about(task)["sweep"]
    found = results(render(task=task), dict.fromkeys(kinds), tmp_path)
    failed = {k: r for k, r in found.items() if r != "stock" and not r.startswith("rejected: ")}
    assert not failed
    assert found.keys() == set(kinds)


# This `try_one` replaces that of SCRIPT. It saves a base model with weights, without the head of a
# classifier, and an adapter of this model with random weights; it loads and merges the adapter.
ADAPTERS = """
import peft
from safetensors.torch import load_file, save_file

def fill(parameters):
    for parameter in parameters:
        if parameter.requires_grad:
            parameter.data.normal_(std=0.05)

def logits_of(model):
    for tensor in [*model.parameters(), *model.buffers()]:
        tensor.data = tensor.data.clone()
    return model.eval()(**logits_inputs).logits

def try_one(kind, options, folder):
    global logits_inputs
    torch.manual_seed(0)
    made = AutoConfig.for_model(kind, **options)
    auto = Model.auto_class if Model.can_generate() else transformers.AutoModel
    base = auto.from_config(made)
    base.save_pretrained(folder + "/base")
    names = [n for n in load_file(folder + "/base/model.safetensors") if "pooler" in n]
    if names:  # base models trained with masked language modeling have no weights for the pooler
        tensors = load_file(folder + "/base/model.safetensors")
        kept = {n: t for n, t in tensors.items() if n not in names}
        save_file(kept, folder + "/base/model.safetensors", {"format": "pt"})
    config = build_config(Task(), folder + "/base", data.schema, tokenizer)
    model, _ = build_model(Model, config, folder + "/base")
    model.add_lora(
        r=2, lora_alpha=4, target_modules=["all-linear"], base_model_name_or_path=folder + "/base"
    )
    notes = check_model(model, tokenizer, examples, 48)
    fill(model.parameters())
    assert all("pooler" in name for name in unused_parameters(model, batch))
    model.save_pretrained(folder + "/saved")
    logits_inputs = model.without_labels(inputs)
    expected = logits_of(model)
    assert torch.equal(logits_of(load_model(Model, folder + "/saved")), expected)
    labels = {} if model.can_generate() else {"num_labels": model.config.num_labels}
    pad = {"pad_token_id": model.config.base_config.pad_token_id}
    name = Model.auto_class.__name__
    of_peft = getattr(peft, name.replace("AutoModel", "AutoPeftModel", 1))
    for kind in (of_peft, getattr(transformers, name)):
        other = kind.from_pretrained(folder + "/saved", **labels, **pad)
        assert torch.equal(logits_of(other), expected), kind.__name__
    model.merge_lora()
    torch.testing.assert_close(model.eval()(**logits_inputs).logits, expected)
    model.choose_form(inputs)
    assert model.saves_stock, "the merged model has no stock checkpoint"
    return notes[-1].partition(" for ")[0]
"""


@pytest.mark.parametrize("task", TASKS)
def test_adapters_of_all_architectures_are_loaded_and_merged(
    task: str, render: Render, tmp_path: Path
) -> None:
    pytest.importorskip("peft")
    kinds = about(task)["architectures"]
    start, _, rest = SCRIPT.partition("def try_one")
    script = start + ADAPTERS + rest[rest.index("kinds, sizes") :]
    lines = run_python(
        render(task=task), "-c", script, json.dumps(SIZES), tmp_path, typed=json.dumps(kinds)
    ).stdout
    found = dict(json.loads(line) for line in lines.splitlines() if line.startswith("["))
    assert found == dict.fromkeys(kinds, "checkpoints are adapters")


HEADS = """
import json, sys, torch, transformers
from transformers import AutoConfig, AutoModelForSequenceClassification
from transformers import AutoModelForTokenClassification
from model.configuration import ModelConfig
from model.modeling import Model
from training.loading import load_tokenizer
transformers.logging.disable_progress_bar()
out = sys.argv[1]
names = ["c", "a", "b"]
config = AutoConfig.for_model("roberta", **json.loads(sys.argv[2]))
config.id2label, config.label2id = dict(enumerate(names)), {n: i for i, n in enumerate(names)}
base = AutoModelForSequenceClassification.from_config(config).eval()
base.save_pretrained(out)
ids = torch.tensor([[1, 5, 6, 2]])
logits = base(ids).logits
kind = "single_label_classification"
same = Model(ModelConfig(out, labels=names, problem_type=kind)).eval()
torch.testing.assert_close(same(ids).logits, logits)
ordered = Model(ModelConfig(out, labels=sorted(names), problem_type=kind)).eval()
torch.testing.assert_close(ordered(ids).logits, logits[:, [1, 2, 0]])
assert any("order" in note for note in ordered.notes)
assert ordered.config.id2label == {0: "a", 1: "b", 2: "c"}
ordered.save_pretrained(out + "/ordered")
again = Model.from_pretrained(out + "/ordered").eval()
torch.testing.assert_close(again(ids).logits, ordered(ids).logits)
for labels in (["x", "y", "z"], ["x", "y"]):
    new = Model(ModelConfig(out, labels=labels, problem_type=kind)).eval()
    assert new(ids).logits.shape[-1] == len(labels)
    assert any("new head" in note for note in new.notes)
    assert "classifier.out_proj.weight" in new.loading_info["missing_keys"]
    name = "classifier.roberta.encoder.layer.0.output.dense.weight"
    assert torch.equal(new.get_parameter(name), same.get_parameter(name))
bert = AutoConfig.for_model("bert", **json.loads(sys.argv[2]), num_labels=len(names))
AutoModelForTokenClassification.from_config(bert).save_pretrained(out + "/tokens")
options = {"dtype": torch.bfloat16}
config = ModelConfig(out + "/tokens", labels=names, problem_type=kind, load_options=options)
other = Model(config)
assert other.notes == ["new head: the base model is a BertForTokenClassification"]
assert {"classifier.weight", "bert.pooler.dense.weight"} <= set(other.loading_info["missing_keys"])
assert other.dtype == torch.bfloat16
"""


def test_head_of_a_base_classifier_is_kept_only_for_the_same_labels(
    render: Render, tmp_path: Path
) -> None:
    run_python(render(task="classification"), "-c", HEADS, tmp_path, json.dumps(SMALL))


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
loss.LOGITS_AT_ONCE = 10 * 1024  # computed in several parts
for module in model.modules():
    if isinstance(module, torch.nn.Dropout):
        module.p = 0.0

def results(smoothing, **options):
    model.config.label_smoothing = smoothing
    model.zero_grad()
    outputs = model(**batch, num_items_in_batch=100, **options)
    outputs.loss.backward()
    trained = ((name, p) for name, p in model.named_parameters() if p.requires_grad)
    return outputs.loss, {name: p.grad.clone() for name, p in trained}

for is_trained in (True, False):  # with LoRA the head is frozen
    model.get_output_embeddings().requires_grad_(is_trained)
    for smoothing in (0.2, 0.0):
        with_head, head_grads = results(smoothing)
        whole, grads = results(smoothing, return_logits=True)
        torch.testing.assert_close(with_head, whole)
        torch.testing.assert_close(head_grads, grads, rtol=1e-4, atol=1e-7)
is_linear = isinstance(model.get_output_embeddings(), loss.LinearHead)
assert (model(**batch).logits is None) == is_linear
with torch.no_grad():
    torch.testing.assert_close(model(**batch, num_items_in_batch=100).loss, whole)
model.config.label_smoothing = 0.2  # without effect in evaluation mode
torch.testing.assert_close(model.eval()(**batch, num_items_in_batch=100).loss, whole)
print(is_linear)
"""


HEAD_IN_FLOAT64 = """
import torch
from model import loss
loss.LOGITS_AT_ONCE = 150  # computed in several parts
torch.manual_seed(0)
labels = torch.randint(0, 50, (2, 9))
labels[0, 3:5] = -100
for smoothing in (0.0, 0.2):
    for has_bias in (True, False):
        head = loss.LinearHead(16, 50, has_bias)
        hidden = torch.randn(2, 9, 16, requires_grad=True)
        exact = [t.detach().double().requires_grad_() for t in (hidden, *head.parameters())]
        logits = torch.nn.functional.linear(exact[0][:, :-1].flatten(0, 1), *exact[1:])
        targets = labels[:, 1:].flatten()
        expected = torch.nn.functional.cross_entropy(logits, targets, label_smoothing=smoothing)
        found = head(hidden, labels, None, smoothing)
        torch.testing.assert_close(found.double(), expected, rtol=1e-6, atol=0)
        expected.backward()
        found.backward()
        for tensor, other in zip((hidden, *head.parameters()), exact, strict=True):
            difference = (tensor.grad - other.grad).norm() / other.grad.norm()
            assert difference < 1e-6, difference
"""


def test_loss_and_gradient_computed_in_parts_equal_those_of_torch_in_float64(
    render: Render,
) -> None:
    run_python(render(task="causal_lm"), "-c", HEAD_IN_FLOAT64)


@pytest.mark.parametrize(
    ("kind", "options", "is_linear"),
    [
        ("gpt2", GPT2, True),
        ("qwen2", {**DECODER, "tie_word_embeddings": True}, True),
        ("gptj", {**GPT2, "rotary_dim": 8}, True),  # the head has a bias
        ("gemma2", {**DECODER, "head_dim": 16, "final_logit_softcapping": 30.0}, False),
        ("granite", {**DECODER, "logits_scaling": 2.0}, False),
        ("bert", {**SMALL, "is_decoder": True}, False),  # the head has an additional layer
    ],
)
def test_loss_computed_in_parts_equals_the_loss_of_all_logits(
    kind: str, options: dict, is_linear: bool, render: Render, tmp_path: Path
) -> None:
    arguments = [kind, json.dumps(options), str(tmp_path)]
    done = run_python(render(task="causal_lm"), "-c", LINEAR_HEAD, *arguments)
    assert done.stdout.splitlines()[-1] == str(is_linear)
