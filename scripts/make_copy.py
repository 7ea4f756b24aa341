"""Write a copy of this template for Windows and cruft, with {{ }} instead of << >>.

    python scripts/make_copy.py OUT

OUT is a folder with all files that Cookiecutter needs; OUT.zip has the same files, for a release.
Cookiecutter renders the same projects from OUT, from OUT.zip and from this template. OUT may be a
git repository: an earlier copy in it is replaced, and the git history is kept.
"""

import argparse
import json
import re
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any
from zipfile import ZIP_DEFLATED, ZipFile

from binaryornot.check import is_binary
from cookiecutter.find import find_template
from cookiecutter.generate import is_copy_only_path
from jinja2 import Environment

ROOT = Path(__file__).resolve().parent.parent
QUESTIONS = json.loads((ROOT / "cookiecutter.json").read_text(encoding="utf-8"))
SETTINGS = QUESTIONS["_jinja2_env_vars"]
OURS, USUAL = Environment(keep_trailing_newline=True, **SETTINGS), Environment()
TEMPLATE = find_template(ROOT, OURS).name
VERBATIM = re.compile("_(?!_|copy_without_render$)|__prompts__$")  # not rendered
CACHE = re.compile(r"/(\.\w+_cache|__pycache__)/")

# Token names of Jinja's lexer, each with the delimiter of this template and the default delimiter.
MARKS = {
    f"{kind}_{token}": (getattr(OURS, setting), getattr(USUAL, setting))
    for kind in ("variable", "block", "comment")
    for token, setting in (("begin", f"{kind}_start_string"), ("end", f"{kind}_end_string"))
}


def copied(token: str, text: str) -> str:
    """Return one token of a template, with the default delimiters of Jinja, such as `{{ }}`."""
    if token in MARKS:  # the text can include + or -, and a newline that is trimmed
        return text.replace(*MARKS[token])
    # A brace before a delimiter, as in {<< x >>}, would become part of the delimiter.
    if token == "data":
        return re.sub(r"\{(?=[{%#]|\Z)", "{{ '{' }}", text)
    # Do not return "": the text after the mark could then begin a line, where Jinja strips spaces.
    if token in ("raw_begin", "raw_end"):
        return "{{ '' }}"
    return text.replace("#}", "# }") if token == "comment" else text


def translated(value: Any) -> Any:
    """Translate a template text to the default delimiters, also inside lists and dictionaries."""
    if isinstance(value, dict):
        return {translated(key): translated(item) for key, item in value.items()}
    if isinstance(value, list):
        return [translated(item) for item in value]
    if isinstance(value, str):
        return "".join(copied(token, text) for _, token, text in OURS.lex(value))
    return value


def sources() -> Iterator[Path]:
    """Yield the files to copy, as paths relative to ROOT, without the caches of tools."""
    yield from map(Path, (".gitattributes", "LICENSE", "cookiecutter.json", "hf_template_ext.py"))
    for folder in ("hooks", "templates", TEMPLATE):
        for path in (ROOT / folder).rglob("*"):
            name = path.relative_to(ROOT)
            if path.is_file() and not CACHE.search(name.as_posix()):
                yield name


def is_rendered(path: Path) -> bool:
    """Return whether Cookiecutter renders a file, given its path relative to ROOT."""
    place, *inside = path.parts
    if place != TEMPLATE:
        # Not rendered: files in ROOT itself, and task.json, which hf_template_ext.py reads.
        is_included = place == "templates" and path.name != "task.json"
        return is_included or path.stem in ("pre_gen_project", "post_gen_project")
    above = ("/".join(inside[:depth]) for depth in range(1, len(inside) + 1))
    copy_only = any(is_copy_only_path(name, {"cookiecutter": QUESTIONS}) for name in above)
    return not copy_only and not is_binary(str(ROOT / path))


def write(path: Path, target: Path) -> None:
    """Write one file of the copy, with the mode and the newlines of its source."""
    target.parent.mkdir(parents=True, exist_ok=True)
    shutil.copy(ROOT / path, target)
    if path == Path("cookiecutter.json"):
        asked = {k: v if VERBATIM.match(k) else translated(v) for k, v in QUESTIONS.items()}
        kept = {name: value for name, value in SETTINGS.items() if not name.endswith("_string")}
        text = json.dumps({**asked, "_jinja2_env_vars": kept}, ensure_ascii=False, indent=2)
        target.write_text(text + "\n", encoding="utf-8", newline="\n")
    elif is_rendered(path):
        with target.open(encoding="utf-8") as file:
            text, newlines = translated(file.read()), file.newlines
        newline = newlines[0] if isinstance(newlines, tuple) else newlines  # as in Cookiecutter
        target.write_text(text, encoding="utf-8", newline=newline)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("out", type=Path)
    out = parser.parse_args().out.resolve()
    copies = {path: Path(translated(str(path))) for path in sources()}
    earlier = [path for path in out.glob("*") if path.name != ".git"]
    found = {path.name for path in earlier}
    ours = {path.parts[0] for path in copies.values()}
    if found and not {"cookiecutter.json"} <= found <= ours:
        parser.error(
            f"{out} contains files that this script did not write; expected a new or empty folder, "
            "or an earlier copy of the template"
        )
    for path in earlier:
        shutil.rmtree(path) if path.is_dir() else path.unlink()
    for path, copy in copies.items():
        write(path, out / copy)
    with ZipFile(f"{out}.zip", "w", ZIP_DEFLATED) as archive:
        archive.writestr(
            f"{out.name}/", ""
        )  # Cookiecutter requires that the folder is the first entry
        for copy in sorted(copies.values()):
            archive.write(out / copy, out.name / copy)


if __name__ == "__main__":
    main()
