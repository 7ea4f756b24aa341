"""Files that are either whole or not there: written aside, flushed, and published in one step."""

import hashlib
import json
import os
import shutil
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

from safetensors import SafetensorError

from errors import RunError

MANIFEST = "manifest.json"
STORE = ".checkpoints"
KEPT = {"last": 1}  # contents before the present one, for the case that it is damaged


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


def write_file(path: Path, content: str | bytes) -> None:
    """Replace a file in one atomic step."""
    aside = path.with_name(f".{path.name}.tmp")
    aside.write_bytes(content.encode() if isinstance(content, str) else content)
    _flush(aside)
    os.replace(aside, path)
    _flush(path.parent)


def publish(outdir: Path, contents: dict[str, Callable[[Path], None]]) -> None:
    """Make names in a folder lead to what is written for them, each in one atomic step.

    A content is written to a new folder beside the one in use, with a manifest written last; the
    name is a link, which is then replaced. A process killed at any moment leaves every name as it
    was or as it is to be; an error while something is written leaves all names as they were.

    Args:
        contents: For each name, what fills the empty folder that it is given.
    """
    store = outdir / STORE
    store.mkdir(exist_ok=True)
    older = {name: _versions(outdir / name) for name in contents}
    numbers = {name: found[-1][0] + 1 if found else 0 for name, found in older.items()}
    versions = {name: store / f"{name}.{number}" for name, number in numbers.items()}
    asides = {name: store / f"{name}.{number}.tmp" for name, number in numbers.items()}
    try:
        for name, write in contents.items():
            shutil.rmtree(asides[name], ignore_errors=True)
            asides[name].mkdir()
            write(asides[name])
            _seal(asides[name])
        for name in contents:
            os.rename(asides[name], versions[name])
            _flush(store)
            _link(outdir / name, versions[name])
    finally:
        for aside in asides.values():
            shutil.rmtree(aside, ignore_errors=True)
    for name, found in older.items():
        for _, version in found[: len(found) - KEPT.get(name, 0)]:
            shutil.rmtree(version, ignore_errors=True)


def _link(link: Path, target: Path) -> None:
    """Replace a link in one step."""
    if link.is_dir() and not link.is_symlink():  # a copy of a run, made with its links followed
        os.rename(link, target.parent / f"{link.name}.copied.tmp")
    aside = target.parent / f"{link.name}.link"
    aside.unlink(missing_ok=True)
    aside.symlink_to(Path(STORE) / target.name)
    os.replace(aside, link)
    _flush(link.parent)


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
    paths = (folder.parent / STORE).glob(f"{folder.name}.*")
    found = ((path.name.rpartition(".")[2], path) for path in paths)
    return sorted((int(number), path) for number, path in found if number.isdecimal())


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
