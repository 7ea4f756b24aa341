"""Files that are either whole or not there: written aside, flushed, and published in one step."""

import hashlib
import json
import os
import shutil
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

from safetensors import SafetensorError

from . import RunError

MANIFEST = "manifest.json"
STORE = ".checkpoints"


@contextmanager
def saving(folder: Path, size: int) -> Iterator[None]:
    """Save something into a folder, if there is room, and say in a sentence what prevents it.

    Args:
        size: How much is to be written, in bytes.

    Raises:
        RunError: the disk is too full, or the folder cannot be written to.
    """
    try:
        if (free := shutil.disk_usage(folder).free) < size:
            raise OSError(f"{free:,} bytes are free; it takes {size:,}")
        yield
    except Exception as error:
        # To safetensors a full disk is an error of its own, to tokenizers a bare Exception.
        if not isinstance(error, (OSError, SafetensorError)) and type(error) is not Exception:
            raise
        raise RunError(f"{folder}: not saved ({error}); the saves before are untouched") from None


def write_file(path: Path, text: str) -> None:
    """Replace a file in one atomic step."""
    aside = path.with_name(f".{path.name}.tmp")
    aside.write_text(text, encoding="utf-8")
    _flush(aside)
    os.replace(aside, path)
    _flush(path.parent)


def publish(folder: Path, write: Callable[[Path], None], keep: int = 0) -> None:
    """Make `folder` lead to what `write` writes, in one atomic step.

    The content is written to a new folder beside the one in use, with a manifest written last;
    `folder` is a link, which is then replaced. A process killed at any moment leaves `folder` as
    it was or as it is to be.

    Args:
        write: Fills the empty folder that it is given.
        keep: How many of the contents before this one to keep.
    """
    store = folder.parent / STORE
    store.mkdir(exist_ok=True)
    versions = _versions(folder)
    version = store / f"{folder.name}.{versions[-1][0] + 1 if versions else 0}"
    aside = store / f"{version.name}.tmp"
    shutil.rmtree(aside, ignore_errors=True)
    try:
        aside.mkdir()
        write(aside)
        _seal(aside)
        os.rename(aside, version)
    finally:
        shutil.rmtree(aside, ignore_errors=True)
    if folder.is_dir() and not folder.is_symlink():  # a copy of a run, made with its links followed
        os.rename(folder, store / f"{folder.name}.copied.tmp")
    _flush(store)
    link = store / f"{folder.name}.link"
    link.unlink(missing_ok=True)
    link.symlink_to(Path(STORE) / version.name)
    os.replace(link, folder)
    _flush(folder.parent)
    for _, old in versions[: len(versions) - keep]:
        shutil.rmtree(old, ignore_errors=True)


def _seal(folder: Path) -> None:
    """Flush the files of a folder to the disk, and write down what they are."""
    manifest = {}
    for file in sorted(folder.iterdir()):
        _flush(file)
        manifest[file.name] = {"size": file.stat().st_size, "sha256": _sha256(file)}
    write_file(folder / MANIFEST, json.dumps(manifest, indent=2))


def clean(outdir: Path) -> None:
    """Remove what a killed save has left behind."""
    for leftover in [*(outdir / STORE).glob("*.tmp"), *(outdir / STORE).glob("*.link")]:
        leftover.unlink() if leftover.is_symlink() else shutil.rmtree(leftover)


def is_published(folder: Path) -> bool:
    """Whether something has been saved under this name, be it whole or damaged."""
    return (folder / MANIFEST).is_file() or bool(_versions(folder))


def find_whole(folder: Path) -> tuple[Path, str | None]:
    """The content of a published folder or, where that is damaged, the newest whole one before.

    Returns:
        The folder that is whole, and what is wrong with `folder` if it is another one.

    Raises:
        RunError: `folder` is no checkpoint, or no whole one is left.
    """
    if not is_published(folder):
        raise RunError(f"{folder}: no checkpoint here; expected a folder that a run saved")
    fault = find_fault(folder)
    if fault is None:
        return folder, None
    for _, version in reversed(_versions(folder)):
        if find_fault(version) is None:
            return version, fault
    raise RunError(f"{folder}: damaged, and no whole checkpoint before it ({fault})")


def find_fault(folder: Path) -> str | None:
    """Hold a checkpoint against its manifest; say what is wrong with it, if anything."""
    try:
        manifest = json.loads((folder / MANIFEST).read_text(encoding="utf-8"))
        for name, expected in manifest.items():
            file = folder / name
            if not file.is_file():
                return f"{name} is missing"
            if file.stat().st_size != expected["size"]:
                return f"{name} has {file.stat().st_size} bytes, not {expected['size']}"
            if _sha256(file) != expected["sha256"]:
                return f"{name} has been altered"
    except (OSError, ValueError, KeyError, TypeError, AttributeError):
        return f"{MANIFEST} cannot be read"
    return None


def _versions(folder: Path) -> list[tuple[int, Path]]:
    """All complete contents of a published folder, the oldest first."""
    found = []
    for path in (folder.parent / STORE).glob(f"{folder.name}.*"):
        number = path.name.rpartition(".")[2]
        if number.isdecimal():
            found.append((int(number), path))
    return sorted(found)


def _sha256(path: Path) -> str:
    digest = hashlib.sha256()
    with path.open("rb") as file:
        while block := file.read(2**20):
            digest.update(block)
    return digest.hexdigest()


def _flush(path: Path) -> None:
    """Wait until a file, or the names in a folder, are on the disk."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
