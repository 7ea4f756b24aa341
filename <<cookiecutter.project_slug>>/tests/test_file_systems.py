"""Runs work without symbolic links and without flushes of folders; permissions follow the umask."""

import errno
import os
import stat
from collections.abc import Iterator
from contextlib import contextmanager
from itertools import count
from unittest import mock

import pytest

import train
from helpers import seams
from helpers.assertions import assert_bit_identical, read_result
from helpers.file_watch import watching
from helpers.kill_loop import kill_and_resume
from helpers.processes import Launch
from helpers.seams import Killed
from training import atomic

pytestmark = pytest.mark.proof


@contextmanager
def without_links(code: int = errno.EPERM) -> Iterator[None]:
    """Make the creation of symbolic links fail, as on exFAT and on some network mounts."""
    with mock.patch.object(os, "symlink", side_effect=OSError(code, os.strerror(code))):
        yield


@contextmanager
def without_folder_flush() -> Iterator[None]:
    fsync = os.fsync

    def refusing(descriptor: int) -> None:
        if stat.S_ISDIR(os.fstat(descriptor).st_mode):
            raise OSError(errno.EINVAL, "Invalid argument")
        fsync(descriptor)

    with mock.patch.object(os, "fsync", refusing):
        yield


@pytest.mark.parametrize("umask", [0o022, 0o027, 0o077])
def test_permissions_follow_the_umask(umask, arguments, tmp_path):
    before = os.umask(umask)
    try:
        train.main([*arguments, "--epochs", "1"])
    finally:
        os.umask(before)
    paths = list((tmp_path / "run").rglob("*"))
    assert {path.name for path in paths} > {"model.safetensors", "optimizer.safetensors"}
    for path in [tmp_path / "run", *paths]:
        mode = path.stat().st_mode & 0o777
        assert mode == (0o777 if path.is_dir() else 0o666) & ~umask, path


@pytest.mark.parametrize("code", [errno.EPERM, errno.EOPNOTSUPP, errno.ENOSYS])
def test_run_without_symbolic_links_copies_checkpoints_and_reports_it(
    code, arguments, tmp_path, capsys, uninterrupted
):
    with without_links(code):
        train.main(arguments)
    note = f"{tmp_path}/run: no symbolic links here; checkpoints are copied instead"
    assert capsys.readouterr().out.count(note) == 1
    for name in ("best", "last"):
        folder = tmp_path / "run" / name
        assert folder.is_dir() and not folder.is_symlink()
        assert atomic.find_fault(folder) is None
    assert_bit_identical(tmp_path / "run", uninterrupted(arguments))


def test_dry_run_reports_missing_symbolic_links(arguments, tmp_path, capsys):
    with without_links():
        train.main([*arguments, "--dry_run"])
    assert "no symbolic links here" in capsys.readouterr().out
    assert not (tmp_path / "run").exists()


def test_killed_run_without_symbolic_links_is_bit_identical(arguments, tmp_path):
    outdir = arguments.index("--outdir")
    arguments[outdir : outdir + 2] = ["--save_steps", "1"]
    counts = kill_and_resume(arguments, tmp_path, 4, processes=1, seed=7, patch=without_links)
    assert counts.kills >= 4


def test_kill_during_a_save_without_links_keeps_an_intact_checkpoint(
    arguments, tmp_path, uninterrupted
):
    run = tmp_path / "run"

    def attempt(save) -> None:
        for number in count(1):
            operations = count(1)

            def kill(*_, operations=operations, number=number) -> None:
                if next(operations) >= number:
                    raise Killed

            with watching(run, kill):
                try:
                    save()
                    is_over = True
                except Killed:
                    is_over = False
            for name in ("best", "last"):
                folder, _ = atomic.find_intact(run / name)
                assert (folder / "model.safetensors").is_file()
            atomic.clean(run)
            if is_over:
                break
        assert number > 50

    with without_links(), seams.before_save(attempt, lambda state: state.current_epoch == 2):
        train.main(arguments)
    assert_bit_identical(run, uninterrupted(arguments))


def test_copies_are_replaced_by_links_if_links_are_supported_later(arguments, tmp_path):
    """A run may be moved from a disk without symbolic links to a disk that supports them."""
    with without_links():
        train.main([*arguments, "--epochs", "1"])
    train.main(["--restore_dir", str(tmp_path / "run" / "last"), "--epochs", "2"])
    assert (tmp_path / "run" / "last").is_symlink()
    assert read_result(tmp_path / "run").state["current_epoch"] == 2
    assert not list((tmp_path / "run" / atomic.STORE).glob("*.tmp"))


def test_file_among_the_temporary_folders_is_removed(arguments, tmp_path):
    train.main([*arguments, "--epochs", "1"])
    leftover = tmp_path / "run" / atomic.STORE / "last.9.tmp"
    leftover.write_text("")
    train.main(["--restore_dir", str(tmp_path / "run" / "last"), "--epochs", "2"])
    assert not leftover.exists()


def test_run_works_on_a_disk_that_cannot_flush_folders(arguments, tmp_path, uninterrupted):
    Launch(arguments, tmp_path / "output", 1, without_folder_flush).expect()
    assert_bit_identical(tmp_path / "run", uninterrupted(arguments))
