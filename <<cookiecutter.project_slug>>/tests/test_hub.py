"""`--push_to_hub`: uploaded files, and failed uploads."""

import threading
from http.server import ThreadingHTTPServer

import pytest
from huggingface_hub import constants

import train
from errors import RunError
from helpers.hub_server import Hub

pytestmark = pytest.mark.proof


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


def test_best_is_uploaded_if_requested(arguments, tmp_path, hub):
    train.main([*arguments, "--max_steps", "1", "--push_to_hub", "mine"])
    best = tmp_path / "run" / "best"
    files = {file.relative_to(best).as_posix() for file in best.rglob("*") if file.is_file()}
    kept = files - {"training_state.json", "manifest.json"}
    assert kept == hub.files.keys() - {".gitattributes"}
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


def test_invalid_name_on_the_hub_is_refused_at_the_start(arguments, tmp_path):
    with pytest.raises(RunError, match="--push_to_hub a/b/c: "):
        train.main([*arguments, "--push_to_hub", "a/b/c"])
    assert not (tmp_path / "run").exists()
