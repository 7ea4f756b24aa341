"""If a file operation of a save fails, `last/` and `best/` are still intact checkpoints."""

import errno
import json
import os
import resource
import shutil
from collections.abc import Callable
from itertools import count
from pathlib import Path

import pytest

import train
from errors import RunError
from helpers import seams
from helpers.assertions import assert_bit_identical, read_state, read_weights
from helpers.file_watch import watching
from helpers.seams import Killed
from training import atomic

pytestmark = pytest.mark.proof

Save = Callable[[], None]


class Failing:
    """Makes file operation `number` (1-based) fail.

    If the error is `Killed`, all later operations fail, too.
    """

    def __init__(self, number: int, error: BaseException):
        self.number = number
        self.error = error
        self.done = 0

    def __call__(self, event: str, arguments: tuple) -> None:
        self.done += 1
        if self.done == self.number or (self.is_reached and isinstance(self.error, Killed)):
            raise self.error

    @property
    def is_reached(self) -> bool:
        return self.done >= self.number


def intact_epochs(run: Path) -> dict[str, int]:
    """Check that `best/` and `last/` are intact; return the number of completed epochs of each."""
    epochs = {}
    for name in ("best", "last"):
        assert atomic.find_fault(run / name) is None
        assert {"config.json", "tokenizer.json"} < {file.name for file in (run / name).iterdir()}
        read_weights(run / name)
        epochs[name] = read_state(run / name)["current_epoch"]
    json.loads((run / "log.json").read_text())
    return epochs


@pytest.fixture
def at_second_save(arguments, tmp_path):
    """Return a function that trains two runs of two epochs, and checks that they are equal.

    In one of the runs, `attempt(save, run)` is called before the save at the end of the second
    epoch.
    """

    def during(attempt: Callable[[Save, Path], None]) -> None:
        run = tmp_path / "run"
        train.main([*arguments, "--outdir", str(tmp_path / "expected")])
        with seams.before_save(
            lambda save: attempt(save, run), lambda state: state.current_epoch == 2
        ):
            train.main(arguments)
        assert_bit_identical(run, tmp_path / "expected")

    return during


@pytest.mark.parametrize("error", [OSError(errno.ENOSPC, "No space left on device"), Killed()])
def test_every_operation_of_a_save_may_fail(error, at_second_save):
    def attempt(save: Save, run: Path) -> None:
        assert intact_epochs(run) == {"best": 1, "last": 1}
        for number in count(1):
            failing = Failing(number, error)
            before = intact_epochs(run)
            with watching(run, failing):
                try:
                    save()
                except RunError as refusal:
                    assert "not saved (" in str(refusal)
                    assert "\n" not in str(refusal)
                except Killed:
                    pass
            if not failing.is_reached:
                break
            after = intact_epochs(run)
            assert after in (before, {"best": 2, "last": before["last"]}, {"best": 2, "last": 2})
            atomic.clean(run)
            assert intact_epochs(run) == after
        assert number > 50

    at_second_save(attempt)


def test_previous_save_is_kept_if_a_file_cannot_be_written_completely(at_second_save):
    def attempt(save: Save, run: Path) -> None:
        before = intact_epochs(run)
        sizes = sorted({file.stat().st_size for file in (run / "last").iterdir()})
        soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
        for size in sizes:
            resource.setrlimit(resource.RLIMIT_FSIZE, (size - 1, hard))
            try:
                with pytest.raises(RunError, match="not saved"):
                    save()
            finally:
                resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
            assert intact_epochs(run) == before
            assert not list((run / atomic.STORE).glob("*.tmp"))
        assert len(sizes) > 5

    at_second_save(attempt)


def test_links_refer_to_intact_checkpoints_before_each_file_operation(at_second_save):
    def attempt(save: Save, run: Path) -> None:
        seen: list[dict[str, int]] = []
        with watching(run, lambda *_: seen.append(intact_epochs(run))):
            save()
        assert {epochs["last"] for epochs in seen} == {1, 2}

    at_second_save(attempt)


def test_files_are_flushed_before_they_are_published(at_second_save):
    def attempt(save: Save, run: Path) -> None:
        events: list[tuple[str, str]] = []
        with watching(run, lambda event, paths: events.append((event, str(paths[0])))):
            save()
        store = run / atomic.STORE
        for name in ("best", "last"):
            version = os.readlink(run / name).rpartition("/")[2]
            temporary = f"{store / version}.tmp"
            renamed = events.index(("os.rename", temporary))
            flushed = {path for event, path in events[:renamed] if event == "fsync"}
            content = {f"{temporary}/{file.name}" for file in (run / name).iterdir()}
            manifest = f"{temporary}/{atomic.MANIFEST}"
            assert flushed >= content - {manifest} | {f"{temporary}/.{atomic.MANIFEST}.tmp"}
            linked = events.index(("os.rename", str(store / f"{name}.link")))
            assert ("fsync", str(store)) in events[renamed:linked]
            assert ("fsync", str(run)) in events[linked:]

    at_second_save(attempt)


def test_save_that_does_not_fit_on_the_disk_writes_nothing(at_second_save, monkeypatch):
    def attempt(save: Save, run: Path) -> None:
        usage = shutil.disk_usage(run)._replace(free=10**6)
        written: list[tuple] = []
        with monkeypatch.context() as patch:
            patch.setattr(shutil, "disk_usage", lambda _: usage)
            with (
                watching(run, lambda *event: written.append(event)),
                pytest.raises(RunError, match="1,000,000 bytes are free; the save needs"),
            ):
                save()
        assert not written
        assert intact_epochs(run) == {"best": 1, "last": 1}

    at_second_save(attempt)


def test_removed_output_directory_is_reported(arguments, tmp_path):
    with (
        seams.before_save(lambda _: shutil.rmtree(tmp_path / "run")),
        pytest.raises(RunError, match="No such file or directory"),
    ):
        train.main(arguments)
    assert not (tmp_path / "run").exists()


def test_output_directory_that_cannot_be_created_is_reported(arguments, tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(RunError, match=r"file/run: not writable \(Not a directory\)"):
        train.main([*arguments, "--outdir", str(tmp_path / "file" / "run")])


def test_incomplete_files_of_a_killed_save_are_removed_on_resume(arguments, tmp_path):
    train.main([*arguments, "--max_steps", "1"])
    store = tmp_path / "run" / atomic.STORE
    (store / "last.7.tmp").mkdir()
    (store / "last.7.tmp" / "model.safetensors").write_bytes(b"half")
    (store / "last.link").symlink_to("nowhere")
    train.main(["--restore_dir", str(tmp_path / "run" / "last"), "--max_steps", "2"])
    assert sorted(path.name.split(".")[0] for path in store.iterdir()) == ["best", "last", "last"]
