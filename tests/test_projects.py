"""The rendered projects at work: their own tests, the launcher, and what the README promises."""

from __future__ import annotations

import json
import os
import re
import signal
import subprocess
import sys
from pathlib import Path

import psutil
import pytest
from safetensors import safe_open

from conftest import Render, wait_for

ENVIRONMENT = {**os.environ, "HF_HUB_OFFLINE": "1", "OMP_NUM_THREADS": "1"}
ACCELERATE = Path(sys.executable).with_name("accelerate")
TWO_PROCESSES: list[str | Path] = [ACCELERATE, "launch", "--config_file", "configs/cpus.yaml"]
# The slow proofs are about what is the same for every task: on one of them, unless all is tested.
WITH_PROOFS = "classification"
FOR_SIGNALS = {  # as the project's README says
    "PET_SIGNALS_TO_HANDLE": "SIGTERM,SIGINT,SIGUSR1",
    "TORCH_ELASTIC_SHUTDOWN_TIMEOUT": "60",
    "TORCH_DISABLE_SHARE_RDZV_TCP_STORE": "1",
}


# What the README has saved opens without our code, and is the model that was trained.
OPEN_STOCK = """
import json, torch, transformers
from model.modeling import Model
trained = Model.from_pretrained("outputs/best").eval()
kind = getattr(transformers, json.load(open("stock/config.json"))["architectures"][0])
stock, info = kind.from_pretrained("stock", output_loading_info=True)
assert not info["missing_keys"] and not info["unexpected_keys"], info
(inner,) = [part for part in trained.children() if isinstance(part, kind)]
ids = torch.tensor([[5, 6, 7]])
assert torch.equal(stock.eval()(ids)[0], inner(ids)[0])
if stock.can_generate():
    assert stock.generation_config == trained.generation_config
"""


def run(project: Path, *command: str | Path, **variables: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        list(map(str, command)),
        cwd=project,
        env={**ENVIRONMENT, **variables},
        capture_output=True,
        text=True,
        timeout=900,
    )


def test_the_projects_own_tests_pass(project: Path, task: str) -> None:
    command = [sys.executable, "-m", "pytest", "-q", "-m", "", "-p", "no:cacheprovider"]
    if task == WITH_PROOFS or "TEST_ALL" in os.environ:
        command += ["-m", ""]
    done = run(project, *command)
    assert done.returncode == 0, done.stdout[-5000:]


def test_two_processes_by_the_launcher_then_the_snippets(project: Path) -> None:
    launch = [*TWO_PROCESSES, "train.py", "--max_steps", "6"]
    done = run(project, *launch, ACCELERATE_USE_CPU="true")
    assert done.returncode == 0, done.stderr
    bar = r"\[Epoch 0\] \[TRAIN\]: +\d+%\|.*\| 6/\d+ \[\d\d:\d\d<.*, loss=[\d.]+, lr=[\d.e-]+"
    assert re.search(bar, done.stderr)
    assert re.search(r"\[Epoch 0\] \[VALID\]: 100%\|.*\| \d+/\d+ \[.*loss=", done.stderr)
    log = json.loads((project / "outputs" / "log.json").read_text())
    assert log["Epoch 0"]["train_log"]["loss"] > 0
    assert log["Epoch 0"]["valid_log"]["loss"] > 0
    snippets = """
from model.configuration import ModelConfig
config = ModelConfig()
from model.modeling import Model
model = Model(config)
is_of_texts = model(input_ids=ids).logits.ndim == 2  # a label for each, not for each token
labels = ids[:, 0] % 2 if is_of_texts else ids % 2
outputs = model(**{'input_ids': ids, 'attention_mask': ids * 0 + 1, 'labels': labels})
outputs.loss.backward()
from model.dataset import generate_dataset
from torch.utils.data import DataLoader
train_dataset = generate_dataset(train_file_path)
valid_dataset = generate_dataset(valid_file_path)
train_loader = DataLoader(train_dataset)
valid_loader = DataLoader(valid_dataset)
from transformers import AutoTokenizer
path = 'outputs/best'
model = Model.from_pretrained(path)
tokenizer = AutoTokenizer.from_pretrained(path)
print(model(**next(iter(valid_loader))).loss.item())
"""
    given = "import torch; ids = torch.tensor([[5, 6, 7]])\n"
    paths = "train_file_path, valid_file_path = 'data/train.jsonl', 'data/valid.jsonl'\n"
    code = given + paths + snippets
    done = run(project, sys.executable, "-c", code)
    assert done.returncode == 0, done.stderr
    assert float(done.stdout) > 0

    readme = (project / "README.md").read_text(encoding="utf-8")
    code = "\n".join(re.findall(r"^```py\n(.+?)^```", readme, re.DOTALL | re.MULTILINE))
    code = code.replace("path/to/best", "outputs/best") + OPEN_STOCK
    done = run(project, sys.executable, "-c", code)
    assert done.returncode == 0, done.stderr


def launched(project: Path, *command: str | Path) -> subprocess.Popen[str]:
    """A launcher whose run has saved, and would go on for hours."""
    endless = ["--epochs", "999", "--save_steps", "1", "--restore_dir", "auto"]
    launcher = subprocess.Popen(
        [str(word) for word in [*command, "train.py", *endless]],
        cwd=project,
        env={**ENVIRONMENT, **FOR_SIGNALS, "ACCELERATE_USE_CPU": "true"},
        stdout=subprocess.DEVNULL,
        stderr=(project / "stderr.txt").open("w"),
        text=True,
    )
    wait_for(lambda: (project / "outputs" / "last").exists())
    return launcher


def workers_of(launcher: subprocess.Popen[str]) -> list[psutil.Process]:
    children = psutil.Process(launcher.pid).children()
    return [child for child in children if "train.py" in child.cmdline()]


@pytest.mark.parametrize("task", ["classification"])
@pytest.mark.parametrize("name", ["SIGTERM", "SIGINT", "SIGUSR1"])
def test_a_signal_to_the_launcher_saves_the_run(name: str, project: Path) -> None:
    launcher = launched(project, *TWO_PROCESSES)
    workers = workers_of(launcher)
    assert len(workers) == 2
    launcher.send_signal(signal.Signals[name])
    launcher.wait(timeout=120)
    assert not any(worker.is_running() for worker in workers)
    assert f"train.py: stopped by {name} and saved" in (project / "stderr.txt").read_text()


@pytest.mark.parametrize("task", ["classification"])
def test_a_launcher_of_one_process_that_dies_lets_the_run_save(project: Path) -> None:
    launcher = launched(project, ACCELERATE, "launch")
    (worker,) = workers_of(launcher)
    launcher.terminate()
    launcher.wait(timeout=120)
    worker.wait(timeout=120)
    expected = "train.py: stopped by the exit of its launcher and saved"
    assert expected in (project / "stderr.txt").read_text()


@pytest.mark.parametrize("task", ["classification"])
def test_the_launcher_brings_a_run_back(project: Path) -> None:
    def step() -> int:
        state = project / "outputs" / "last" / "training_state.json"
        return json.loads(state.read_text())["step"]

    launcher = launched(project, *TWO_PROCESSES, "--rdzv_backend", "c10d", "--max_restarts", "1")
    dead = workers_of(launcher)
    dead[1].kill()
    wait_for(lambda: not any(process.is_running() for process in dead))
    before = step()
    wait_for(lambda: step() > before + 1)
    launcher.terminate()
    launcher.wait(timeout=120)


@pytest.mark.parametrize("task", ["classification"])
@pytest.mark.parametrize("flag", ["--multi_gpu", "--cpu"])
def test_a_launch_that_formed_no_group_is_refused(flag: str, project: Path) -> None:
    done = run(project, ACCELERATE, "launch", flag, "--num_processes", "2", "train.py")
    assert done.returncode != 0
    assert "train.py: 2 processes were requested" in done.stderr
    assert not (project / "outputs").exists()


@pytest.mark.parametrize("task", ["classification"])
def test_one_process_by_the_launcher(task: str, render: Render, project: Path) -> None:
    done = run(project, ACCELERATE, "launch", "train.py", "--max_steps", "2")
    assert done.returncode == 0, done.stderr
    done = run(
        project,
        ACCELERATE,
        "launch",
        "-q",
        "train.py",
        "--train_input",
        "data/none.csv",
        "--outdir",
        "o",
    )
    assert done.stderr.splitlines()[-1].startswith("train.py: data/none.csv: no such file")
    assert "Traceback" not in done.stderr


@pytest.mark.parametrize("task", ["classification"])
def test_a_label_that_training_never_had_is_named(task: str, project: Path) -> None:
    rows = [{"text": "Hello", "label": "ham"}, {"text": "Win", "label": "scam"}]
    (project / "odd.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    done = run(project, sys.executable, "train.py", "--valid_input", "odd.jsonl")
    assert done.returncode == 2
    expected = "train.py: odd.jsonl:2: unknown label 'scam'; expected one of ham, spam\n"
    assert done.stderr == expected


@pytest.mark.parametrize("task", ["causal_lm"])
def test_no_text_is_lost_between_blocks(task: str, project: Path) -> None:
    code = """
import json
from model.dataset import generate_dataset
from training.loading import load_tokenizer
tokenizer = load_tokenizer("tiny")
blocks = [block["input_ids"].tolist() for block in generate_dataset("data/valid.jsonl", max_len=50)]
joined = blocks[0] + [token for block in blocks[1:] for token in block[1:]]
rows = [json.loads(line)["text"] for line in open("data/valid.jsonl", encoding="utf-8")]
expected = [t for row in rows for t in [*tokenizer(row).input_ids, tokenizer.eos_token_id]]
assert joined == expected
assert max(map(len, blocks)) == 50
"""
    done = run(project, sys.executable, "-c", code)
    assert done.returncode == 0, done.stderr


@pytest.mark.parametrize("task", ["causal_lm"])
def test_a_sample_is_a_beginning_and_how_the_model_goes_on(task: str, project: Path) -> None:
    code = """
import torch
from model.configuration import ModelConfig
from model.dataset import generate_dataset
from model.metrics import Scores
from model.modeling import Model
from training.loading import load_tokenizer
tokenizer, data = load_tokenizer("tiny"), generate_dataset("data/valid.jsonl", max_len=50)
model = Model(ModelConfig()).eval()
scores = Scores(model, tokenizer, torch.device("cpu"), max_new_tokens=8)
inputs = data.collate([data[0], data[len(data) - 1], data[1]])
scores.update(None, inputs)
scores.compute(1.0)
lengths = (inputs["labels"] != -100).sum(1).tolist()
assert lengths[1] < lengths[0] == lengths[2] < 64  # the last block is not a whole one
for ids, sample in zip(inputs["input_ids"][[0, 2]], scores.samples, strict=True):
    ids = ids[None, : lengths[0] // 2]
    goes_on = model.generate(ids, max_new_tokens=8, do_sample=False)[:, ids.shape[1] :]
    assert list(sample) == [tokenizer.decode(part[0]) for part in (ids, goes_on)]
scores.reset()
assert scores.compute(1.0) and scores.samples == []
"""
    done = run(project, sys.executable, "-c", code)
    assert done.returncode == 0, done.stderr


@pytest.mark.parametrize("task", ["seq2seq", "causal_lm"])
@pytest.mark.parametrize("pad_token", ["None", "tokenizer.eos_token"])
def test_the_end_mark_stays_a_target_whatever_pads(pad_token: str, project: Path) -> None:
    code = f"""
from model.dataset import generate_dataset
from training.loading import load_tokenizer
tokenizer = load_tokenizer("tiny")
tokenizer.pad_token = {pad_token}
dataset = generate_dataset("data/valid.jsonl", tokenizer, 64)
batch = dataset.collate([dataset[i] for i in range(len(dataset))])
rows = open("data/valid.jsonl", encoding="utf-8").read().count("\\n")
assert (batch["labels"] == tokenizer.eos_token_id).sum() == rows
assert (batch["labels"] != -100).sum() == dataset.num_items.sum()
"""
    done = run(project, sys.executable, "-c", code)
    assert done.returncode == 0, done.stderr


@pytest.mark.parametrize("task", ["classification"])
def test_labels_are_in_order_and_keep_their_names(task: str, project: Path) -> None:
    for labels in (["ham", "no", "spam"], ["-1", "b", "2", "10"]):
        rows = [{"text": "Hello", "label": name} for name in reversed(labels)]
        (project / "t.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
        code = """
from model.configuration import ModelConfig
from model.dataset import generate_dataset
print(list(ModelConfig(**generate_dataset("t.jsonl").schema).id2label.values()))
"""
        done = run(project, sys.executable, "-c", code)
        assert done.stdout == f"{labels}\n", done.stderr


@pytest.mark.parametrize("task", ["causal_lm"])
def test_plain_text_is_one_document(task: str, project: Path) -> None:
    text = "One line.\n\n  Another, with spaces. \nThe last"
    (project / "t.txt").write_text(text)
    code = """
from model.dataset import generate_dataset
from training.loading import load_tokenizer
blocks = [block["input_ids"].tolist() for block in generate_dataset("t.txt", max_len=8)]
print(repr(load_tokenizer("tiny").decode(blocks[0] + [t for b in blocks[1:] for t in b[1:]])))
"""
    done = run(project, sys.executable, "-c", code)
    assert done.stdout == f"{text!r}\n", done.stderr


@pytest.mark.parametrize("task", ["causal_lm"])
def test_separate_documents_do_not_see_one_another(task: str, project: Path) -> None:
    code = """
import json, torch
from model.configuration import ModelConfig
from model.dataset import generate_dataset
from model.modeling import Model
texts = ["It was late.", "", "She looked at him for a long while, and said nothing.", "No.", "Yes!"]

def read(texts, max_len):
    with open("t.jsonl", "w") as file:
        file.writelines(json.dumps({"text": text}) + "\\n" for text in texts)
    return generate_dataset("t.jsonl", max_len=max_len, separate_documents=True)

together = read(texts, 100)
model = Model(ModelConfig(**together.schema)).eval()
assert model.config.separate_documents
def loss(dataset):
    return model(**dataset.collate([dataset[i] for i in range(len(dataset))]), num_items_in_batch=1)
alone = sum(loss(read([text], 100)).loss.item() for text in texts if text)
assert len(together) == 1 and together.num_items[0] == together.lengths[0] - len(texts)
assert abs(loss(together).loss.item() - alone) < 1e-4 * alone

blocks = read(texts, 6)
assert len(blocks) > 3
targets = [int((blocks[i]["labels"] != -100).sum()) for i in range(len(blocks))]
assert targets == blocks.num_items.tolist() and sum(targets) == together.num_items[0]
"""
    done = run(project, sys.executable, "-c", code)
    assert done.returncode == 0, done.stderr


@pytest.mark.parametrize("task", ["causal_lm"])
def test_separate_documents_by_the_launcher(project: Path) -> None:
    options = ["--max_steps", "4", "--separate_documents", "--gradient_checkpointing"]
    done = run(project, *TWO_PROCESSES, "train.py", *options, ACCELERATE_USE_CPU="true")
    assert done.returncode == 0, done.stderr
    state = json.loads((project / "outputs" / "last" / "training_state.json").read_text())
    assert state["args"]["separate_documents"]
    assert json.loads((project / "outputs" / "last" / "config.json").read_text())[
        "separate_documents"
    ]


@pytest.mark.parametrize("task", ["causal_lm"])  # without dropout, which compiling draws otherwise
def test_compiling_changes_neither_the_result_nor_the_names(task: str, project: Path) -> None:
    results: list[tuple[list[str], float]] = []
    for flags in ([], ["--compile"]):
        outdir = project / f"run{len(results)}"
        command = ["train.py", "--max_steps", "3", "--outdir", str(outdir), *flags]
        done = run(project, sys.executable, *command, TORCH_LOGS="recompiles")
        assert done.returncode == 0, done.stderr[-3000:]
        assert done.stderr.count("Recompiling") <= 1  # training, then validation
        with safe_open(outdir / "last" / "model.safetensors", "pt") as weights:
            names = sorted(weights.keys())
        log = json.loads((outdir / "log.json").read_text())
        results.append((names, log["Epoch 0"]["valid_log"]["loss"]))
    assert results[0][0] == results[1][0]
    assert results[0][1] == pytest.approx(results[1][1], rel=1e-4)
