"""List the files of a source."""

import glob
import re
from collections.abc import Sequence
from pathlib import Path

from errors import DataError

from .files import FORMATS, format_of, is_remote
from .remote import list_remote

Source = str | Path | Sequence[str | Path]
# NAME:SPLIT or NAME:CONFIGURATION:SPLIT, for a data set on the Hub or in a folder.
NAMED = re.compile(r"(?P<name>[^:]{2,}?)(:(?P<config>[^:\[\]]+))?:(?P<split>\w+(\[.*\])?)")
EXPECTED = f"expected a file with the extension {', '.join(FORMATS[:-1])} or {FORMATS[-1]}"
# Files that `datasets` writes beside the data files.
DESCRIPTIONS = ("dataset_info.json", "dataset_infos.json")
# Words in the path of a file that indicate its split, as in `datasets`.
SPLITS = {
    "train": ("train", "training"),
    "validation": ("validation", "valid", "val", "dev"),
    "test": ("test", "testing", "eval", "evaluation"),
}


def parse_name(source: Source) -> re.Match | None:
    """Match a source with `NAMED`.

    Return None if there is no match, or if the source is an existing path, a URL or a sequence.
    """
    if not isinstance(source, (str, Path)) or is_remote(str(source)):
        return None
    if expand_user(source).exists():
        return None
    return NAMED.fullmatch(str(source))


def expand_user(path: str | Path) -> Path:
    """Replace a leading `~` with the home directory."""
    path = Path(path)
    return path.expanduser() if path.parts[:1] and path.parts[0].startswith("~") else path


def saved_by(folder: Path) -> str | None:
    """Return the class whose `save_to_disk` wrote a folder: "Dataset" or "DatasetDict", or None."""
    if (folder / "dataset_dict.json").is_file():
        return "DatasetDict"
    if (folder / "state.json").is_file() and (folder / "dataset_info.json").is_file():
        return "Dataset"
    return None


def list_files(source: Source) -> list[str]:
    """List the files of a source. All must have the same format, and none may be empty.

    The files of a folder are all files in it with a supported extension, at any depth, except
    `DESCRIPTIONS`. As in pyarrow and Spark, files and folders whose names begin with a dot or an
    underscore are ignored. An existing path is never treated as a pattern.

    Raises:
        DataError: A file does not exist, is empty or has an unknown format; a folder or a pattern
            has no files; the files differ in format; a folder has several splits; or a remote
            pattern cannot be listed.
    """
    parts = [source] if isinstance(source, (str, Path)) else source
    files = [file for part in parts for file in _expand(str(part))]
    for file in files:
        if not is_remote(file) and not Path(file).is_file():
            raise DataError(f"{file}: no such file; {EXPECTED}")
        if not format_of(file):
            raise DataError(f"{file}: unknown format; {EXPECTED}")
        if format_of(file) != format_of(files[0]):
            raise DataError(
                f"{file}: not in the format of {files[0]}; expected files of a single format"
            )
        if not is_remote(file) and Path(file).stat().st_size == 0:
            raise DataError(f"{file}: the file is empty; expected at least one example")
    return files


def _expand(part: str) -> list[str]:
    if is_remote(part):
        return list_remote(part)
    path = expand_user(part)
    if path.is_dir():
        found = _files_in(path)
        what = "the folder contains no data file"
    elif glob.has_magic(part) and not path.exists():
        found = sorted(glob.glob(str(path), recursive=True))
        what = "no file matches"
    else:
        return [str(path)]
    if not found:
        raise DataError(f"{part}: {what}; {EXPECTED}")
    return found


def _files_in(folder: Path) -> list[str]:
    found = _visible_files(folder)
    splits = [split for split in SPLITS if any(_is_of(file, folder, split) for file in found)]
    if len(splits) > 1:
        names = ", ".join(splits)
        raise DataError(
            f"{folder}: has the splits {names}; expected one, as in {folder}:{splits[0]}"
        )
    return [str(file) for file in found]


def files_of_split(folder: Path, split: str) -> list[str]:
    """List the files of a split in a folder: those whose paths contain a word for the split.

    `SPLITS` lists the words for some splits; the only word for any other split is its name. If no
    path contains a word of `SPLITS`, all files belong to `train`.

    Raises:
        DataError: There are no files of the split; or see `list_files`.
    """
    found = _visible_files(folder)
    chosen = [file for file in found if _is_of(file, folder, split)]
    if not chosen and split == "train":
        chosen = [] if any(_is_of(f, folder, s) for f in found for s in SPLITS) else found
    if not chosen:
        raise DataError(f"{folder}:{split}: cannot be read (no files of a split {split!r})")
    return list_files(chosen)


def _visible_files(folder: Path) -> list[Path]:
    return [
        file
        for file in sorted(folder.rglob("*"))
        if file.is_file()
        and format_of(file)
        and file.name not in DESCRIPTIONS
        and not any(name.startswith((".", "_")) for name in file.relative_to(folder).parts)
    ]


def _is_of(file: Path, folder: Path, split: str) -> bool:
    names = next((names for names in SPLITS.values() if split in names), (split,))
    words = re.split(r"[-._ /0-9]", str(file.relative_to(folder).as_posix()).lower())
    return any(name.lower() in words for name in names)
