"""Write folders and files so that no name ever refers to incomplete content.

Everything is written to a temporary path, flushed to the disk, and then published by an atomic
rename. On file systems without symbolic links, a folder is published differently: see
`_replace_by_copy`. Each published folder has a manifest of checksums, which shows whether the
folder is intact.
"""

import errno
import hashlib
import json
import os
import shutil
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

from safetensors import SafetensorError

from errors import RunError, describe

MANIFEST = "manifest.json"
STORE = ".checkpoints"
KEEP_PREVIOUS = {"last": 1}  # number of older versions of a folder to keep as a fallback

# Error numbers of `os.symlink` on exFAT, on FUSE mounts such as Google Drive, and on some
# network mounts.
NO_LINKS = {errno.EPERM, errno.EOPNOTSUPP, errno.ENOSYS, errno.EINVAL, errno.EACCES}
# Error numbers of `os.fsync` on file systems that cannot flush a folder.
NO_FOLDER_SYNC = {errno.EINVAL, errno.EOPNOTSUPP, errno.ENOSYS, errno.EACCES, errno.EISDIR}


@contextmanager
def saving(folder: Path, size: int) -> Iterator[None]:
    """Check the free disk space, and convert any error during a save to a RunError.

    Args:
        size: Number of bytes that will be written.

    Raises:
        RunError: The disk is too full, or writing fails.
    """
    try:
        if (free := shutil.disk_usage(folder).free) < size:
            raise OSError(f"{free:,} bytes are free; the save needs {size:,}")
        yield
    except Exception as error:
        # A full disk raises SafetensorError in safetensors and a bare Exception in tokenizers.
        is_of_disk = isinstance(error, (OSError, SafetensorError)) or type(error) is Exception
        reason = str(error) if is_of_disk else describe(error)
        raise RunError(f"{folder}: not saved ({reason}); earlier checkpoints are intact") from error


def write_file(path: Path, content: str | bytes) -> None:
    """Replace a file atomically."""
    temporary = path.with_name(f".{path.name}.tmp")
    temporary.write_bytes(content.encode() if isinstance(content, str) else content)
    flush(temporary)
    os.replace(temporary, path)
    flush(path.parent)


def publish(outdir: Path, writers: dict[str, Callable[[Path], None]]) -> None:
    """Write folders to temporary paths; then, one by one, replace the named folders atomically.

    `outdir/NAME` is a symbolic link to `outdir/.checkpoints/NAME.NUMBER`. If the process is killed
    at any moment, each link refers either to its old or to its new folder. If a writer raises an
    exception, all links refer to their old folders. If symbolic links are not supported,
    `outdir/NAME` is a copy instead: see `_replace_by_copy`.

    Args:
        writers: For each name, a function that writes into the given empty folder.
    """
    store = outdir / STORE
    store.mkdir(exist_ok=True)
    older = {name: _versions(outdir / name) for name in writers}
    numbers = {name: found[-1][0] + 1 if found else 0 for name, found in older.items()}
    versions = {name: store / f"{name}.{number}" for name, number in numbers.items()}
    temporaries = {name: store / f"{name}.{number}.tmp" for name, number in numbers.items()}
    try:
        for name, write in writers.items():
            shutil.rmtree(temporaries[name], ignore_errors=True)
            temporaries[name].mkdir()
            write(temporaries[name])
            _seal(temporaries[name])
        for name in writers:
            os.rename(temporaries[name], versions[name])
            flush(store)
            _repoint(outdir / name, versions[name])
    finally:
        for temporary in temporaries.values():
            shutil.rmtree(temporary, ignore_errors=True)
    for name, found in older.items():
        for _, version in found[: len(found) - KEEP_PREVIOUS.get(name, 0)]:
            shutil.rmtree(version, ignore_errors=True)


def supports_links(outdir: Path) -> bool:
    """Return whether symbolic links can be created in an existing folder.

    Raises:
        RunError: The folder is not writable.
    """
    probe = outdir / f".probe.{os.getpid()}.tmp"
    try:
        probe.symlink_to("nowhere")
    except OSError as error:
        if error.errno in NO_LINKS and os.access(outdir, os.W_OK):
            return False
        raise RunError(f"{outdir}: not writable ({error.strerror})") from None
    probe.unlink()
    return True


def _repoint(name: Path, version: Path) -> None:
    """Link a name to a version, or copy the version if symbolic links are not supported."""
    temporary = version.parent / f"{name.name}.link"
    temporary.unlink(missing_ok=True)
    try:
        temporary.symlink_to(Path(STORE) / version.name)
    except OSError as error:
        if error.errno not in NO_LINKS:
            raise
        _replace_by_copy(name, version)
    else:
        copied = version.parent / f"{name.name}.copied.tmp"
        # `name` is a folder instead of a link if `cp -rL` or `_replace_by_copy` created it.
        if name.is_dir() and not name.is_symlink():
            os.rename(name, copied)
        os.replace(temporary, name)
        shutil.rmtree(copied, ignore_errors=True)
    flush(name.parent)


def _replace_by_copy(name: Path, version: Path) -> None:
    """Replace the folder `name` with a copy of the folder `version`.

    This takes two renames. Between them the name is missing, but `.checkpoints/` has the version.
    """
    copy = version.parent / f"{name.name}.copy.tmp"
    shutil.rmtree(copy, ignore_errors=True)
    shutil.copytree(version, copy)
    for path in [*copy.rglob("*"), copy]:
        flush(path)
    if name.exists():
        old = version.parent / f"{name.name}.old.tmp"
        shutil.rmtree(old, ignore_errors=True)
        os.rename(name, old)
        os.rename(copy, name)
        shutil.rmtree(old, ignore_errors=True)
    else:
        os.rename(copy, name)


def _seal(folder: Path) -> None:
    """Flush all files of a folder, and write their checksums into its manifest.

    Also set the permissions of the files according to the umask, since safetensors creates files
    with mode 600.
    """
    marker = folder / MANIFEST
    marker.write_text("")
    mode = marker.stat().st_mode & 0o777
    manifest = {}
    for file in sorted(folder.rglob("*")):
        if file.is_file() and file != marker:
            file.chmod(mode)
            flush(file)
            name = file.relative_to(folder).as_posix()
            manifest[name] = {"size": file.stat().st_size, "sha256": _sha256(file)}
        elif file.is_dir():
            flush(file)
    write_file(marker, json.dumps(manifest, indent=2))


def clean(outdir: Path) -> None:
    """Remove temporary paths of killed saves from `.checkpoints/`, and restore missing names.

    A name is missing if the output directory was copied without its links, or if the process was
    killed just before the name was linked or the copy was renamed. A name without an intact version
    is not restored.
    """
    store = outdir / STORE
    for leftover in [*store.glob("*.tmp"), *store.glob("*.link")]:
        if leftover.is_dir() and not leftover.is_symlink():
            shutil.rmtree(leftover)
        else:
            leftover.unlink()
    for name in {path.stem for path in store.glob("*.*")}:
        if (outdir / name).exists():
            continue
        if versions := [path for _, path in _versions(outdir / name) if find_fault(path) is None]:
            _repoint(outdir / name, versions[-1])


def is_published(folder: Path) -> bool:
    """Return whether any version of this folder was saved, intact or damaged."""
    return (folder / MANIFEST).is_file() or bool(_versions(folder))


def find_intact(folder: Path) -> tuple[Path, str | None]:
    """Return a published folder or, if it is damaged, its newest intact version.

    Returns:
        The folder to read; and a description of the damage of `folder`, or None if `folder` is
        intact.

    Raises:
        RunError: `folder` is not a checkpoint, or no version is intact.
    """
    if not is_published(folder):
        raise RunError(f"{folder}: not a checkpoint; expected a folder that a run saved")
    fault = find_fault(folder)
    if fault is None:
        return folder, None
    for _, version in reversed(_versions(folder)):
        if find_fault(version) is None:
            return version, fault
    raise RunError(f"{folder}: damaged ({fault}), and no earlier checkpoint is intact")


def find_fault(folder: Path) -> str | None:
    """Compare a checkpoint with its manifest; return the first fault, or None if it is intact."""
    file = folder / MANIFEST
    try:
        manifest = json.loads(file.read_text(encoding="utf-8"))
        for name, expected in manifest.items():
            file = folder / name
            if not file.is_file():
                return f"{name} is missing"
            if file.stat().st_size != expected["size"]:
                return f"{name} has {file.stat().st_size} bytes, expected {expected['size']}"
            if _sha256(file) != expected["sha256"]:
                return f"{name} does not match its checksum"
    except OSError as error:
        return f"{file.name} cannot be read ({error.strerror})"
    except (ValueError, KeyError, TypeError, AttributeError):
        return f"{MANIFEST} is not a manifest of a checkpoint"
    return None


def _versions(folder: Path) -> list[tuple[int, Path]]:
    """Return the numbers and paths of all complete versions of a folder, oldest first."""
    paths = (folder.parent / STORE).glob(f"{folder.name}.*")
    numbered = ((path.name.rpartition(".")[2], path) for path in paths)
    return sorted((int(number), path) for number, path in numbered if number.isdecimal())


def _sha256(path: Path) -> str:
    digest = hashlib.sha256()
    with path.open("rb") as file:
        while block := file.read(2**20):
            digest.update(block)
    return digest.hexdigest()


def flush(path: Path) -> None:
    """Flush a file, or the entries of a folder, to the disk."""
    is_folder = path.is_dir()
    if is_folder and os.name == "nt":  # Windows cannot open a folder
        return
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    except OSError as error:
        if not is_folder or error.errno not in NO_FOLDER_SYNC:
            raise
    finally:
        os.close(descriptor)
