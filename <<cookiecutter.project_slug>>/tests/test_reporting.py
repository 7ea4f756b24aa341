"""What a run tells: scores, pictures, trackers, the model card, and a look before it begins."""

import base64
import json
import math
import os
import re
import shutil
import threading
from collections import namedtuple
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import pytest
from huggingface_hub import ModelCard, constants
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

import train
from conftest import ROOT
from errors import RunError
from model.configuration import ModelConfig
from model.dataset import generate_dataset
from model.metrics import Scores
from model.modeling import Model
from outcome import assert_same
from real_runs import Run
from test_runs import Killed, stop_after
from training.files import STORE
from training.loading import learned_positions
from training.state import MAX_POINTS, TrainingState

SCORES = Scores.directions(generate_dataset(ROOT / "data" / "train.jsonl").schema)
PNG = b"\x89PNG\r\n\x1a\n"


def log_of(run) -> dict:
    return json.loads((run / "log.json").read_text())


def valid_with(monkeypatch, values: list[dict]) -> None:
    """Let the validations give these scores."""
    valid, given = train.valid, iter(values)
    monkeypatch.setattr(train, "valid", lambda *args: {**valid(*args), **next(given)})


@pytest.mark.parametrize("name", ["loss", list(SCORES)[0], list(SCORES)[-1]])
def test_best_is_chosen_by_the_score_that_was_asked_for(name, arguments, tmp_path, monkeypatch):
    better = {"loss": False, **SCORES}[name]
    values = [1.0, 3.0, 2.0] if better else [3.0, 1.0, 2.0]
    worse = {"loss": 9.0} if name != "loss" else {}
    valid_with(monkeypatch, [{**worse, name: value} for value in values])
    train.main([*arguments, "--epochs", "3", "--metric_for_best_model", name])
    state = json.loads((tmp_path / "run" / "last" / "training_state.json").read_text())
    assert state["best"]["epoch"] == "Epoch 1"
    best = json.loads((tmp_path / "run" / "best" / "training_state.json").read_text())
    assert best["current_epoch"] == 2


def test_a_score_that_is_not_given_is_refused(arguments, tmp_path):
    with pytest.raises(RunError, match="metric_for_best_model bleurt: no such score; expected"):
        train.main([*arguments, "--metric_for_best_model", "bleurt"])
    assert not (tmp_path / "run").exists()


def test_patience_counts_validations_without_a_better_score(arguments, tmp_path, monkeypatch):
    valid_with(monkeypatch, [{"loss": value} for value in (2.0, 1.0, 1.0, 1.5, 0.1)])
    train.main([*arguments, "--epochs", "9", "--patience", "2"])
    assert list(log_of(tmp_path / "run")) == [f"Epoch {n}" for n in range(4)]


@pytest.mark.parametrize("forward_passes", [3, 4])
def test_validating_inside_an_epoch_changes_nothing(
    forward_passes, arguments, steps, tmp_path, monkeypatch, left_alone
):
    plain = left_alone(arguments)
    arguments += ["--valid_steps", "2", "--save_steps", "1"]
    whole = left_alone(arguments)
    within = [f"Epoch 0, step {step}" for step in range(2, steps, 2)]
    assert list(log_of(whole))[: len(within) + 1] == [*within, "Epoch 0"]
    weights = [(run / "last" / "model.safetensors").read_bytes() for run in (plain, whole)]
    assert weights[0] == weights[1]
    with monkeypatch.context() as patch:
        stop_after(patch, forward_passes)
        with pytest.raises(Killed):
            train.main(arguments)
    train.main(["--restore_dir", str(tmp_path / "run" / "last")])
    assert_same(tmp_path / "run", whole)


def test_pictures_samples_and_card_are_there(arguments, tmp_path, capsys):
    train.main([*arguments, "--logging_steps", "1"])
    run = tmp_path / "run"
    assert (run / "loss.png").read_bytes().startswith(PNG)
    assert set(os.listdir(run)) - {"best", "last", "log.json", "loss.png", STORE}, "nothing shown"
    state = json.loads((run / "best" / "training_state.json").read_text())
    assert [step for step, *_ in state["curve"]] == list(range(1, state["step"] + 1))
    assert (run / "best" / "loss.png").read_bytes().startswith(PNG)
    card = ModelCard.load(run / "best" / "README.md")
    scores = {result.metric_type: result.metric_value for result in card.data.eval_results}
    expected = log_of(run)[state["best"]["epoch"]]["valid_log"]
    assert scores == {name: expected[name] for name in ("loss", *SCORES)}
    assert "| max_len | 48 |" in card.text
    shown = capsys.readouterr()
    for name in scores:
        assert f"{name} {expected[name]:.4g}" in shown.out
    assert re.findall(r"left=([\d:?]+)", shown.err)[-1] == "00:00", "of the whole run"


def points(folder, tag: str) -> list[tuple[int, float]]:
    found: dict[int, float] = {}
    for file in sorted(folder.rglob("events.out.tfevents*")):
        events = EventAccumulator(str(file)).Reload()
        if tag in events.Tags()["scalars"]:
            found |= {event.step: event.value for event in events.Scalars(tag)}
    return sorted(found.items())


def test_a_resumed_run_goes_on_in_its_tensorboard(arguments, tmp_path, monkeypatch):
    arguments += ["--report_to", "tensorboard", "--logging_steps", "1", "--save_steps", "3"]
    train.main([*arguments, "--outdir", str(tmp_path / "whole")])
    with monkeypatch.context() as patch:
        stop_after(patch, 5)
        with pytest.raises(Killed):
            train.main(arguments)
    train.main(["--restore_dir", str(tmp_path / "run" / "last")])
    whole, run = (tmp_path / name / "trackers" for name in ("whole", "run"))
    for tag in ("train/loss", "train/lr", "valid/loss"):
        assert points(run, tag) == points(whole, tag)
    log = log_of(tmp_path / "run")
    valid = {entry["step"]: entry["valid_log"]["loss"] for entry in log.values()}
    assert dict(points(run, "valid/loss")) == pytest.approx(valid)
    assert [step for step, _ in points(run, "train/loss")] == list(range(1, max(valid) + 1))


def test_a_tracker_that_is_not_installed_is_named(arguments, tmp_path):
    with pytest.raises(
        RunError, match="--report_to aim: not installed; expected `pip install aim`"
    ):
        train.main([*arguments, "--report_to", "aim"])
    assert not (tmp_path / "run").exists()


class Hub(BaseHTTPRequestHandler):
    """As much of the Hub's interface as an upload needs."""

    files: dict[str, bytes] = {}
    names: dict[str, str] = {}  # of large files, by their hash
    refuses = False

    def answer(self, content: dict, status: int = 200) -> None:
        body = json.dumps(content).encode()
        self.send_response(status)
        self.send_header("Content-Length", str(len(body)))
        self.send_header("Content-Type", "application/json")
        self.end_headers()
        self.wfile.write(body)

    def body(self) -> bytes:
        return self.rfile.read(int(self.headers.get("Content-Length", 0)))

    def do_POST(self) -> None:
        address, sent = f"http://{self.headers['Host']}", self.body()
        if self.refuses:
            self.answer({"error": "not for you"}, 403)
        elif self.path == "/api/repos/create":
            name = json.loads(sent)["name"]
            self.answer({"url": f"{address}/someone/{name}", "id": f"someone/{name}", "name": name})
        elif "/preupload/" in self.path:
            files = [
                {"path": file["path"], "uploadMode": mode, "shouldIgnore": False, "oid": None}
                for file in json.loads(sent)["files"]
                for mode in ["lfs" if file["path"].endswith(".safetensors") else "regular"]
            ]
            self.answer({"files": files})
        elif self.path.endswith("/info/lfs/objects/batch"):
            objects = [
                {**item, "actions": {"upload": {"href": f"{address}/upload/{item['oid']}"}}}
                for item in json.loads(sent)["objects"]
            ]
            self.answer({"transfer": "basic", "objects": objects})
        elif "/commit/" in self.path:
            for line in map(json.loads, sent.splitlines()):
                value = line["value"]
                if line["key"] == "file":
                    self.files[value["path"]] = base64.b64decode(value["content"])
                elif line["key"] == "lfsFile":
                    self.files[value["path"]] = self.files.pop(value["oid"])
            done = {"commitUrl": f"{address}/someone/mine/commit/1", "commitOid": "1" * 40}
            self.answer({**done, "success": True, "hookOutput": ""})
        else:
            self.answer({})

    def do_PUT(self) -> None:
        self.files[self.path.rpartition("/")[2]] = self.body()
        self.answer({})

    def do_GET(self) -> None:
        self.answer({"name": "someone", "type": "user", "id": "someone/x", "sha": "0" * 40})

    def log_message(self, *_) -> None:
        pass


@pytest.fixture
def hub(monkeypatch):
    server = ThreadingHTTPServer(("127.0.0.1", 0), Hub)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    monkeypatch.setattr(Hub, "files", {})
    monkeypatch.setattr(Hub, "refuses", False)
    address = f"http://127.0.0.1:{server.server_port}"
    monkeypatch.setattr(constants, "ENDPOINT", address)
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)
    monkeypatch.setattr(constants, "HF_HUB_DISABLE_XET", True)
    monkeypatch.setenv("HF_TOKEN", "hf_test")
    yield Hub
    server.shutdown()


def test_best_is_uploaded_when_asked_for(arguments, tmp_path, hub):
    train.main([*arguments, "--max_steps", "1", "--push_to_hub", "mine"])
    best = tmp_path / "run" / "best"
    kept = {file.name for file in best.iterdir()} - {"training_state.json", "manifest.json"}
    assert kept == hub.files.keys() - {".gitattributes"}
    for name in kept:
        assert hub.files[name] == (best / name).read_bytes()


def test_an_upload_that_is_refused_loses_nothing(arguments, tmp_path, hub, monkeypatch):
    monkeypatch.setattr(Hub, "refuses", True)
    with pytest.raises(RunError, match="--push_to_hub mine: not uploaded"):
        train.main([*arguments, "--max_steps", "1", "--push_to_hub", "mine"])
    assert (tmp_path / "run" / "best" / "model.safetensors").is_file()


def test_an_upload_without_a_network_loses_nothing(arguments, tmp_path, hub, monkeypatch):
    monkeypatch.setattr(constants, "ENDPOINT", "http://127.0.0.1:9")
    with pytest.raises(RunError, match="--push_to_hub mine: not uploaded"):
        train.main([*arguments, "--max_steps", "1", "--push_to_hub", "mine"])
    assert (tmp_path / "run" / "best" / "model.safetensors").is_file()


def test_a_dry_run_shows_all_and_leaves_nothing(arguments, tmp_path, capsys):
    train.main([*arguments, "--dry_run"])
    shown = capsys.readouterr().out
    for part in ("train:", "valid:", "tokens:", "input:", "target:", "steps:", "padding"):
        assert part in shown
    for part in ("learning rate:", "model:", "memory:", "disk:"):
        assert part in shown
    assert shown.count("example ") == 3
    assert os.listdir(tmp_path) == []


def test_a_dry_run_in_two_processes(arguments, tmp_path):
    arguments += ["--dry_run", "--report_to", "tensorboard"]
    run = Run(arguments, tmp_path / "output", processes=2)
    assert run.wait() == [0, 0], run.output()
    assert run.output().count("learning rate:") == 1
    assert os.listdir(tmp_path) == ["output"]


def test_the_points_of_a_long_curve_are_even():
    state = TrainingState({}, {}, 8)
    for state.step in range(1, 7 * MAX_POINTS):
        state.note(1.0, 0.1)
    steps = [step for step, *_ in state.curve]
    assert MAX_POINTS / 2 <= len(steps) <= MAX_POINTS
    assert {later - step for step, later in zip(steps, steps[1:], strict=False)} == {8}


def test_a_dry_run_ends_where_the_run_would_not_fit(arguments, monkeypatch):
    usage = namedtuple("usage", "total used free")
    monkeypatch.setattr(shutil, "disk_usage", lambda _: usage(10, 10, 1000))
    with pytest.raises(RunError, match="are free; checkpoints take"):
        train.main([*arguments, "--dry_run"])


def test_more_tokens_than_a_model_has_positions_are_refused(arguments):
    schema = generate_dataset(ROOT / "data" / "train.jsonl").schema
    if learned_positions(Model(ModelConfig(str(ROOT / "tiny"), **schema))) == math.inf:
        pytest.skip("this model computes its positions")
    with pytest.raises(RunError, match=r"--max_len 9999: .* has \d+ positions"):
        train.main([*arguments, "--max_len", "9999"])


def test_arguments_come_from_a_file(arguments, tmp_path):
    config = tmp_path / "run.yaml"
    values = dict(zip((a[2:] for a in arguments[::2]), arguments[1::2], strict=True))
    lines = [f"{name}: {json.dumps(value)}" for name, value in values.items()]
    lines += ["max_steps: 1", "lr: 1e-3", "gradient_checkpointing: false", "seed: 7", "patience:"]
    config.write_text("\n".join(lines), encoding="utf-8")
    train.main(["--conf", str(config), "--seed", "8"])
    state = json.loads((tmp_path / "run" / "last" / "training_state.json").read_text())
    given = {name: state["args"][name] for name in ("lr", "seed", "max_steps", "max_len")}
    assert given == {"lr": 1e-3, "seed": 8, "max_steps": 1, "max_len": 48}


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("batchsize: 4", "no argument is named batchsize; did you mean batch_size?"),
        ("compile: 3", "compile: 3; expected true or false"),
        ("- 4", "expected lines of"),
        ("lr: [", "cannot be read"),
    ],
)
def test_a_file_of_arguments_that_is_wrong_is_refused(text, words, tmp_path):
    (tmp_path / "run.yaml").write_text(text, encoding="utf-8")
    with pytest.raises(RunError, match=words.replace("?", r"\?")):
        train.main(["--config", str(tmp_path / "run.yaml")])
