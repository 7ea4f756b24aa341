"""Whatever goes wrong in a save, `last/` and `best/` lead to something whole, at every instant."""

import errno
import json
import os
import resource
import shutil
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from itertools import count
from pathlib import Path

import pytest
from outcome import assert_same
from safetensors.torch import load_file

import train
from errors import RunError
from training import files
from training.checkpoint import Checkpoints

WRITING = {"os.mkdir", "os.rename", "os.symlink", "os.remove", "os.rmdir", "fsync"}


class Watch:
    """Calls `on_write` before each operation that changes something in a folder."""

    def __init__(self):
        self.folder: Path | None = None
        self.on_write: Callable[[str, tuple], None] | None = None
        sys.addaudithook(self.hook)  # there is no way to take it out again
        self.fsync = os.fsync

    def hook(self, event: str, arguments: tuple) -> None:
        if self.on_write is None:
            return
        if event == "open":
            if not isinstance(arguments[2], int) or not arguments[2] & (os.O_WRONLY | os.O_RDWR):
                return
        elif event not in WRITING:
            return
        if str(self.folder) in str(arguments[0]) or event in ("os.remove", "os.rmdir"):
            self.on_write(event, arguments)

    @contextmanager
    def watching(self, folder: Path, on_write: Callable[[str, tuple], None]) -> Iterator[None]:
        def fsync(descriptor: int) -> None:
            self.hook("fsync", (os.readlink(f"/proc/self/fd/{descriptor}"),))
            self.fsync(descriptor)

        self.folder, self.on_write, os.fsync = folder, on_write, fsync  # type: ignore[assignment]
        try:
            yield
        finally:
            self.on_write, os.fsync = None, self.fsync


WATCH = Watch()


class Killed(BaseException):
    """As good as SIGKILL: nothing that is to be cleaned up on the way out can be, either."""


class Failing:
    """Lets one operation fail and, if that is the end, all that come after it."""

    def __init__(self, number: int, fault: BaseException):
        self.number, self.fault = number, fault
        self.done = 0

    def __call__(self, event: str, arguments: tuple) -> None:
        self.done += 1
        if self.done == self.number or (self.is_reached and isinstance(self.fault, Killed)):
            raise self.fault

    @property
    def is_reached(self) -> bool:
        return self.done >= self.number


def whole(run: Path) -> dict[str, int]:
    """The epochs that `best/` and `last/` know of; both have to be complete."""
    epochs = {}
    for name in ("best", "last"):
        assert files.find_fault(run / name) is None
        assert {"config.json", "tokenizer.json"} < {file.name for file in (run / name).iterdir()}
        state = json.loads((run / name / "training_state.json").read_text())
        load_file(run / name / "model.safetensors")
        epochs[name] = state["current_epoch"]
    json.loads((run / "log.json").read_text())
    return epochs


@pytest.fixture
def second_save(arguments, tmp_path, monkeypatch):
    """Do something in place of the second save; the run then goes on, and has to end as ever."""

    def during(attempt: Callable[[Callable[[], None], Path], None]) -> None:
        save, run = Checkpoints.save, tmp_path / "run"

        def attempting(self, is_best=False):
            if self.state.current_epoch == 2:
                before = {**vars(self.state), "log": dict(self.state.log)}
                attempt(lambda: save(self, True), run)
                assert vars(self.state) == before
            save(self, is_best)

        train.main([*arguments, "--outdir", str(tmp_path / "expected")])
        with monkeypatch.context() as patch:
            patch.setattr(Checkpoints, "save", attempting)
            train.main(arguments)
        assert_same(run, tmp_path / "expected")

    return during


@pytest.mark.parametrize("fault", [OSError(errno.ENOSPC, "No space left on device"), Killed()])
def test_every_operation_of_a_save_may_fail(fault, second_save, capsys):
    def attempt(save: Callable[[], None], run: Path) -> None:
        assert whole(run) == {"best": 1, "last": 1}
        for number in count(1):
            failing, before = Failing(number, fault), whole(run)
            with WATCH.watching(run, failing):
                try:
                    save()
                except RunError as error:
                    assert "not saved (" in str(error)
                    assert "\n" not in str(error)
                except Killed:
                    pass
            if not failing.is_reached:
                break
            after = whole(run)
            assert after in (before, {"best": 2, "last": before["last"]}, {"best": 2, "last": 2})
            files.clean(run)
            assert whole(run) == after
        assert number > 50

    second_save(attempt)


def test_a_file_that_cannot_grow_fails_a_save(second_save):
    def attempt(save: Callable[[], None], run: Path) -> None:
        before = whole(run)
        sizes = sorted({file.stat().st_size for file in (run / "last").iterdir()})
        soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
        for size in sizes:
            resource.setrlimit(resource.RLIMIT_FSIZE, (size - 1, hard))
            try:
                with pytest.raises(RunError, match="not saved"):
                    save()
            finally:
                resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
            assert whole(run) == before
            assert not list((run / files.STORE).glob("*.tmp"))
        assert len(sizes) > 5

    second_save(attempt)


def test_links_lead_to_something_whole_at_every_instant(second_save):
    def attempt(save: Callable[[], None], run: Path) -> None:
        seen = []
        with WATCH.watching(run, lambda *_: seen.append(whole(run))):
            save()
        assert {epochs["last"] for epochs in seen} == {1, 2}

    second_save(attempt)


def test_all_is_on_the_disk_before_it_is_published(second_save):
    def attempt(save: Callable[[], None], run: Path) -> None:
        events: list[tuple[str, str]] = []
        with WATCH.watching(run, lambda event, paths: events.append((event, str(paths[0])))):
            save()
        store = run / files.STORE
        for name in ("best", "last"):
            version = os.readlink(run / name).rpartition("/")[2]
            aside = f"{store / version}.tmp"
            renamed = events.index(("os.rename", aside))
            flushed = {path for event, path in events[:renamed] if event == "fsync"}
            content = {f"{aside}/{file.name}" for file in (run / name).iterdir()}
            temporary = {f"{aside}/.{files.MANIFEST}.tmp"}
            assert flushed >= content - {f"{aside}/{files.MANIFEST}"} | temporary
            linked = events.index(("os.rename", str(store / f"{name}.link")))
            assert ("fsync", str(store)) in events[renamed:linked]
            assert ("fsync", str(run)) in events[linked:]

    second_save(attempt)


def test_a_save_that_does_not_fit_is_not_begun(second_save, monkeypatch):
    def attempt(save: Callable[[], None], run: Path) -> None:
        usage, written = shutil.disk_usage(run)._replace(free=10**6), []
        with monkeypatch.context() as patch:
            patch.setattr(shutil, "disk_usage", lambda _: usage)
            with (
                WATCH.watching(run, lambda *event: written.append(event)),
                pytest.raises(RunError, match="1,000,000 bytes are free; it takes"),
            ):
                save()
        assert not written
        assert whole(run) == {"best": 1, "last": 1}

    second_save(attempt)


def test_a_folder_that_is_gone_is_told(arguments, tmp_path, monkeypatch):
    save = Checkpoints.save

    def saving(self, is_best=False):
        shutil.rmtree(self.outdir)
        save(self, is_best)

    monkeypatch.setattr(Checkpoints, "save", saving)
    with pytest.raises(RunError, match="No such file or directory"):
        train.main(arguments)
    assert not (tmp_path / "run").exists()


def test_a_folder_that_cannot_be_made_is_told(arguments, tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(RunError, match=r"file/run: cannot be written to \(Not a directory\)"):
        train.main([*arguments, "--outdir", str(tmp_path / "file" / "run")])


def test_what_a_killed_save_left_is_removed_at_the_start(arguments, tmp_path):
    train.main([*arguments, "--max_steps", "1"])
    store = tmp_path / "run" / files.STORE
    (store / "last.7.tmp").mkdir()
    (store / "last.7.tmp" / "model.safetensors").write_bytes(b"half")
    (store / "last.link").symlink_to("nowhere")
    train.main(["--restore_dir", str(tmp_path / "run" / "last"), "--max_steps", "2"])
    assert sorted(path.name.split(".")[0] for path in store.iterdir()) == ["best", "last", "last"]
