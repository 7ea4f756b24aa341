"""Write a copy of this template that Windows and cruft can read, with {{ }} in place of << >>.

    python scripts/make_copy.py OUT

OUT becomes a folder with all that renders a project, and OUT.zip holds the same for a release.
Both render the very projects that this template renders. OUT may be a git repository: an earlier
copy in it is replaced, and its history stays.
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
VERBATIM = re.compile("_(?!_|copy_without_render$)|__prompts__$")  # questions not rendered
CACHE = re.compile(r"/(\.\w+_cache|__pycache__)/")

# What Jinja's lexer calls each mark, with ours and the usual one.
MARKS = {
    f"{kind}_{token}": (getattr(OURS, setting), getattr(USUAL, setting))
    for kind in ("variable", "block", "comment")
    for token, setting in (("begin", f"{kind}_start_string"), ("end", f"{kind}_end_string"))
}


def copied(token: str, text: str) -> str:
    """One token of a template, as it has to stand between the usual marks."""
    if token in MARKS:  # it can hold more than the mark: a sign, and the newline that it trims
        return text.replace(*MARKS[token])
    if token == "data":  # at the end, too: the brace of {<< x >>} would join those of the mark
        return re.sub(r"\{(?=[{%#]|\Z)", "{{ '{' }}", text)
    if token in ("raw_begin", "raw_end"):  # not "", or white space after it could begin a line
        return "{{ '' }}"
    return text.replace("#}", "# }") if token == "comment" else text


def translated(value: Any) -> Any:
    """A template text with the usual marks, also inside lists and dictionaries."""
    if isinstance(value, dict):
        return {translated(key): translated(item) for key, item in value.items()}
    if isinstance(value, list):
        return [translated(item) for item in value]
    if isinstance(value, str):
        return "".join(copied(token, text) for _, token, text in OURS.lex(value))
    return value


def sources() -> Iterator[Path]:
    """The files to copy, as paths below ROOT, without the caches of tools."""
    yield from map(Path, (".gitattributes", "LICENSE", "cookiecutter.json", "hf_template_ext.py"))
    for folder in ("hooks", "templates", TEMPLATE):
        for path in (ROOT / folder).rglob("*"):
            name = path.relative_to(ROOT)
            if path.is_file() and not CACHE.search(name.as_posix()):
                yield name


def is_rendered(path: Path) -> bool:
    """Whether Cookiecutter renders the file at this path below ROOT."""
    place, *inside = path.parts
    if place != TEMPLATE:  # hf_template_ext.py is imported, and reads task.json
        is_included = place == "templates" and path.name != "task.json"
        return is_included or path.stem in ("pre_gen_project", "post_gen_project")
    above = ("/".join(inside[:depth]) for depth in range(1, len(inside) + 1))
    copy_only = any(is_copy_only_path(name, {"cookiecutter": QUESTIONS}) for name in above)
    return not copy_only and not is_binary(str(ROOT / path))


def write(path: Path, target: Path) -> None:
    """One file of the copy, with the mode and the newlines of its source."""
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
        newline = newlines[0] if isinstance(newlines, tuple) else newlines  # Cookiecutter's choice
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
        parser.error(f"{out} holds something else than a copy; expected a new or empty folder")
    for path in earlier:
        shutil.rmtree(path) if path.is_dir() else path.unlink()
    for path, copy in copies.items():
        write(path, out / copy)
    with ZipFile(f"{out}.zip", "w", ZIP_DEFLATED) as archive:
        archive.writestr(f"{out.name}/", "")  # Cookiecutter wants the folder as the first entry
        for copy in sorted(copies.values()):
            archive.write(out / copy, out.name / copy)


if __name__ == "__main__":
    main()
