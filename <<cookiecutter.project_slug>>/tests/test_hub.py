"""Uploads to the Hub at the end and during a run, failed uploads, and resuming from the Hub."""

import json
import threading
from http.server import ThreadingHTTPServer
from pathlib import Path

import pytest
from huggingface_hub import constants

import train
from errors import RunError
from helpers import seams
from helpers.assertions import assert_equal_tensors, read_weights
from helpers.hub_server import Hub
from reporting.hub import Uploads
from training.atomic import STORE
from training.contract import Task
from training.loading import load_model

pytestmark = pytest.mark.proof


@pytest.fixture
def hub(monkeypatch, tmp_path):
    server = ThreadingHTTPServer(("127.0.0.1", 0), Hub)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    monkeypatch.setattr(Hub, "files", {})
    monkeypatch.setattr(Hub, "commits", [])
    monkeypatch.setattr(Hub, "refuses", False)
    monkeypatch.setattr(Hub, "has_refused", threading.Event())
    address = f"http://127.0.0.1:{server.server_port}"
    monkeypatch.setattr(constants, "ENDPOINT", address)
    template = address + "/{repo_id}/resolve/{revision}/{filename}"
    monkeypatch.setattr(constants, "HUGGINGFACE_CO_URL_TEMPLATE", template)
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)
    monkeypatch.setattr(constants, "HF_HUB_DISABLE_XET", True)
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path / "cache"))
    monkeypatch.setenv("HF_TOKEN", "hf_test")
    yield Hub
    server.shutdown()


def test_best_is_uploaded_if_requested(arguments, tmp_path, hub):
    train.main([*arguments, "--max_steps", "1", "--push_to_hub", "mine"])
    best = tmp_path / "run" / "best"
    files = {file.relative_to(best).as_posix() for file in best.rglob("*") if file.is_file()}
    kept = files - {"training_state.json", "manifest.json"}
    assert kept == hub.files.keys() - {".gitattributes"}
    assert "(loss.png)" in hub.files["README.md"].decode() and "loss.png" in kept
    for name in kept:
        assert hub.files[name] == (best / name).read_bytes()


@pytest.mark.parametrize("failure", ["refused", "no network"])
def test_failed_upload_keeps_best(failure, arguments, tmp_path, hub, monkeypatch):
    if failure == "refused":
        monkeypatch.setattr(hub, "refuses", True)
    else:
        monkeypatch.setattr(constants, "ENDPOINT", "http://127.0.0.1:9")
    with pytest.raises(RunError, match="--push_to_hub mine: not uploaded"):
        train.main([*arguments, "--max_steps", "1", "--push_to_hub", "mine"])
    assert (tmp_path / "run" / "best" / "model.safetensors").is_file()


IN_BACKGROUND = ["--push_to_hub", "mine", "--hub_strategy"]


def test_new_best_is_uploaded_during_training(arguments, tmp_path, hub, monkeypatch):
    """The first upload waits until the second new `best/` is about to be saved."""
    push = Uploads._push
    contents: list[dict] = []
    may_upload = threading.Event()

    def pushing(self: Uploads, folder: Path) -> None:
        if not contents:
            assert may_upload.wait(60)
        contents.append({file.name: file.read_bytes() for file in folder.iterdir()})
        push(self, folder)

    def note(state) -> bool:
        if len(state.log) == 2:
            may_upload.set()
        return False

    monkeypatch.setattr(Uploads, "_push", pushing)
    improving = [{"loss": 1 / number} for number in range(1, 4)]
    with seams.scores_replaced_by(improving), seams.before_save(print, note):
        train.main([*arguments, "--epochs", "3", *IN_BACKGROUND, "every_save"])
    assert 2 <= len(hub.commits) <= 3
    assert contents[0]["model.safetensors"] != contents[-1]["model.safetensors"]
    assert "0.3333" in contents[-1]["README.md"].decode() and "| loss | 1 |" in (
        contents[0]["README.md"].decode()
    )
    for name, content in contents[-1].items():
        assert content == (tmp_path / "run" / "best" / name).read_bytes() == hub.files[name]
    assert not hub.files.keys() & {"training_state.json", "manifest.json"}
    assert not list((tmp_path / "run" / STORE).glob("*.tmp"))


def test_failed_upload_during_training_is_reported_and_retried(arguments, hub, monkeypatch, capsys):
    monkeypatch.setattr(hub, "refuses", True)

    def allow(state) -> bool:
        if len(state.log) == 2:
            assert hub.has_refused.wait(60)
            monkeypatch.setattr(hub, "refuses", False)
        return False

    worse = [{"loss": 1.0}, {"loss": 2.0}]
    with seams.scores_replaced_by(worse), seams.before_save(print, allow):
        train.main([*arguments, *IN_BACKGROUND, "every_save"])
    assert len(hub.commits) == 1 and "model.safetensors" in hub.files
    assert capsys.readouterr().out.count("--push_to_hub mine: not uploaded (") == 1


def test_checkpoint_that_could_not_be_copied_is_uploaded_at_the_end(
    arguments, tmp_path, hub, monkeypatch, capsys
):
    copy = Uploads._copy
    calls = 0

    def failing_once(self: Uploads) -> Path:
        nonlocal calls
        calls += 1
        if calls == 2:
            raise OSError("no space")
        return copy(self)

    monkeypatch.setattr(Uploads, "_copy", failing_once)
    improving = [{"loss": 1.0}, {"loss": 0.5}]
    with seams.scores_replaced_by(improving):
        train.main([*arguments, *IN_BACKGROUND, "every_save"])
    assert "cannot be copied for the upload" in capsys.readouterr().out
    for name in ("README.md", "model.safetensors"):
        assert hub.files[name] == (tmp_path / "run" / "best" / name).read_bytes()


def test_run_resumes_from_the_hub(arguments, steps, tmp_path, hub, uninterrupted):
    with seams.killed_before_micro_batch(steps + 3), pytest.raises(seams.Killed):
        train.main([*arguments, "--save_steps", "1", *IN_BACKGROUND, "checkpoint"])
    for thread in threading.enumerate():
        if thread.name == "upload":
            thread.join()
    state = json.loads(hub.files["last-checkpoint/training_state.json"])
    assert state["args"]["train_input"] == "train.jsonl"
    assert str(tmp_path).encode() not in hub.files["last-checkpoint/training_state.json"]
    again = ["--restore_dir", "hf://someone/mine", "--outdir", str(tmp_path / "again")]
    inputs = arguments[:4]
    train.main([*inputs, *again, "--hub_strategy", "end"])
    weights = read_weights(tmp_path / "again" / "last")
    expected = uninterrupted([*arguments])
    assert_equal_tensors(weights, read_weights(expected / "last"))
    with pytest.raises(RunError, match="already contains a run"):
        train.main([*inputs, *again])


def test_repository_without_a_checkpoint_to_resume_from_is_refused(arguments, tmp_path, hub):
    resumed = ["--outdir", str(tmp_path / "again"), "--restore_dir"]
    for place, reason in (
        ("hf://someone/mine", r"has no last-checkpoint/ .* --hub_strategy checkpoint"),
        ("hf://someone/mine@unknown", r"hf://someone/mine@unknown: cannot be downloaded \("),
    ):
        hub.files = {"model.safetensors": b""}
        with pytest.raises(RunError, match=reason) as raised:
            train.main([*resumed, place])
        assert "\n" not in str(raised.value)


def test_an_adapter_on_the_hub_is_refused(hub):
    hub.files = {"adapter_config.json": b"{}"}
    with pytest.raises(RunError, match="someone/mine: an adapter on the Hub; expected a folder"):
        load_model(Task().model_class, "someone/mine")


def test_hub_strategy_without_a_repository_is_refused(arguments):
    with pytest.raises(RunError, match="--hub_strategy every_save: expected --push_to_hub, too"):
        train.main([*arguments, "--hub_strategy", "every_save"])


def test_invalid_repository_name_is_refused_before_the_first_step(arguments, tmp_path):
    with pytest.raises(RunError, match="--push_to_hub a/b/c: "):
        train.main([*arguments, "--push_to_hub", "a/b/c"])
    assert not (tmp_path / "run").exists()
