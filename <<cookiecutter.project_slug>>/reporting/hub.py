"""Upload checkpoints to the Hub, at the end of a run or in the background."""

import hashlib
import json
import os
import shutil
import threading
from collections.abc import Callable, Collection
from contextlib import suppress
from itertools import count
from pathlib import Path
from typing import Any

from huggingface_hub import HfApi
from huggingface_hub.utils import disable_progress_bars

from errors import RunError
from training.atomic import MANIFEST, STORE, write_file
from training.config import PATHS, RunConfig
from training.remote import LAST
from training.state import STATE_FILE


class Uploads:
    """The uploads of a run, on the main rank: see `--hub_strategy`.

    A thread uploads one checkpoint at a time. At most one more is queued: the newest. A process
    that stops early does not wait for the thread. An interrupted upload leaves the repository
    unchanged, since files appear in it only at the end of an upload.

    Args:
        report: Called with a message if an upload in the background, or the copy for it, fails.
    """

    def __init__(self, config: RunConfig, repository: str, report: Callable[[str], None]):
        self.repository = repository
        self.outdir = Path(config.outdir)
        self.has_last = config.hub_strategy == "checkpoint"
        self.report = report
        self._in_background = config.hub_strategy != "end"
        self._numbers = count()
        self._lock = threading.Lock()
        self._newest: Path | None = None  # the latest copy, uploaded or not
        self._queued: Path | None = None
        self._uploaded: Path | None = None
        self._thread: threading.Thread | None = None
        if self._in_background:
            disable_progress_bars()

    def add(self, names: Collection[str]) -> None:
        """Queue an upload if `--hub_strategy` requires one. Called by the thread that saves.

        Args:
            names: Names of the checkpoints that the thread has just written: "last", and perhaps
                "best".
        """
        if not self._in_background or not ("best" in names or self.has_last):
            return
        try:
            folder = self._copy()
        except Exception as error:
            self._newest = None  # so that `finish` uploads the newest checkpoint
            return self.report(f"{self.outdir}: cannot be copied for the upload ({_reason(error)})")
        with self._lock:
            outdated = self._queued
            self._queued = folder
            self._newest = folder
            if self._thread is None:
                self._thread = threading.Thread(
                    target=self._upload_queued, name="upload", daemon=True
                )
                self._thread.start()
        if outdated is not None:
            shutil.rmtree(outdated, ignore_errors=True)

    def finish(self) -> None:
        """Wait for the thread; if the newest checkpoint was not uploaded, upload it now.

        Raises:
            RunError: The Hub cannot be reached or rejects the upload. No local file is changed.
        """
        if (thread := self._thread) is not None:
            thread.join()
        if self._newest is not None and self._newest == self._uploaded:
            return
        folder: Path | None = None
        try:
            folder = self._copy()
            self._push(folder)
        except Exception as error:  # errors of many types: of the network, the client, the Hub
            raise RunError(
                f"--push_to_hub {self.repository}: not uploaded ({_reason(error)}); the "
                f"model is in {self.outdir}/best"
            ) from None
        finally:
            if folder is not None:
                shutil.rmtree(folder, ignore_errors=True)

    def _upload_queued(self) -> None:
        while True:
            with self._lock:
                folder = self._queued
                self._queued = None
                if folder is None:
                    self._thread = None
                    return
            try:
                self._push(folder)
                self._uploaded = folder
            except Exception as error:
                self.report(
                    f"--push_to_hub {self.repository}: not uploaded ({_reason(error)}); the upload "
                    "will be tried again, at the latest at the end of the run"
                )
            finally:
                shutil.rmtree(folder, ignore_errors=True)

    def _push(self, folder: Path) -> None:
        """Upload a folder; create a public repository if the repository does not exist."""
        api = HfApi()
        repository = api.create_repo(self.repository, exist_ok=True).repo_id
        api.upload_folder(
            folder_path=folder, repo_id=repository, commit_message="Upload checkpoints"
        )

    def _copy(self) -> Path:
        """Copy the files to upload: training may replace the checkpoints during the upload.

        The copies are hard links if possible. Files of `best/` that only resuming needs are
        omitted: training_state.json and the manifest.
        """
        folder = self.outdir / STORE / f"upload.{next(self._numbers)}.tmp"
        shutil.rmtree(folder, ignore_errors=True)
        folder.mkdir(parents=True)
        if (self.outdir / "best").is_dir():
            _link_files(self.outdir / "best", folder)
            for name in (STATE_FILE, MANIFEST):
                (folder / name).unlink()
        if self.has_last:
            _link_files(self.outdir / "last", folder / LAST)
            _remove_paths(folder / LAST)
        return folder


def _link_files(source: Path, target: Path) -> None:
    def link(file: str, place: str) -> None:
        try:
            os.link(file, place)
        except OSError:  # the file system has no hard links
            shutil.copyfile(file, place)

    shutil.copytree(source.resolve(), target, copy_function=link, dirs_exist_ok=True)


def _remove_paths(folder: Path) -> None:
    """Replace absolute paths in the saved arguments of a checkpoint with file names."""
    file = folder / STATE_FILE
    content = json.loads(file.read_text(encoding="utf-8"))
    args = content["args"]
    args.update({name: _name_of(args[name]) for name in PATHS if name in args})
    text = json.dumps(content, indent=2, ensure_ascii=False).encode()
    manifest = json.loads((folder / MANIFEST).read_text(encoding="utf-8"))
    manifest[STATE_FILE] = {"size": len(text), "sha256": hashlib.sha256(text).hexdigest()}
    write_file(file, text)
    write_file(folder / MANIFEST, json.dumps(manifest, indent=2))


def _name_of(value: Any) -> Any:
    """Replace an absolute path with its file name, also in a list of paths or in NAME=PATH."""
    if isinstance(value, list):
        return [_name_of(part) for part in value]
    if not isinstance(value, str):
        return value
    name, mark, path = value.rpartition("=")
    return f"{name}{mark}{Path(path).name}" if Path(path).is_absolute() else value


def _reason(error: Exception) -> str:
    with suppress(IndexError):
        return str(error).strip().splitlines()[0]
    return type(error).__name__
