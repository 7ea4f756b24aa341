"""The task token_classification: labels of tokens, windows, scores, predictions, refused files."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from conftest import SCRIPTS, Render
from running import run_python

LABELS = "O B-PER I-PER O B-LOC"


def write(path: Path, *rows: dict) -> None:
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")


@pytest.fixture(scope="module")
def project(render: Render) -> Path:
    return render(task="token_classification")


@pytest.fixture(scope="module")
def best(project: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The checkpoint best/ of a run on the sample data."""
    outdir = tmp_path_factory.mktemp("tokens") / "run"
    run_python(project, "train.py", "--outdir", outdir)
    return outdir / "best"


def test_labels_windows_and_scores_are_correct(project: Path, tmp_path: Path) -> None:
    """The names of the functions in scripts/entities.py describe the checks."""
    run_python(project, SCRIPTS / "entities.py", tmp_path)


def test_run_learns_from_the_sample_data(best: Path) -> None:
    logs = [
        entry["valid_log"] for entry in json.loads((best.parent / "log.json").read_text()).values()
    ]
    assert logs[-1]["loss"] < logs[0]["loss"]
    assert logs[-1]["f1"] > 0.5
    assert "AddressNumber" in (best.parent / "scores.txt").read_text()


def test_predicted_entities_have_the_f1_of_the_validation(
    project: Path, best: Path, tmp_path: Path
) -> None:
    output = tmp_path / "out.jsonl"
    run_python(
        project,
        "predict.py",
        "--checkpoint",
        best,
        "--input",
        "data/valid.jsonl",
        "--output",
        output,
    )
    rows = (project / "data" / "valid.jsonl").read_text(encoding="utf-8").splitlines()
    true: set[tuple] = set()
    found: set[tuple] = set()
    for number, (row, line) in enumerate(zip(rows, output.read_text().splitlines(), strict=True)):
        answer = json.loads(line)
        true |= {(number, *entity.values()) for entity in json.loads(row)["entities"]}
        for start, end, label, text in (entity.values() for entity in answer["prediction"]):
            assert text == answer["text"][start:end] == text.strip()
            found.add((number, start, end, label))
    log = json.loads((best.parent / "log.json").read_text())
    scores = [entry["valid_log"] for entry in log.values()]
    expected = min(scores, key=lambda entry: entry["loss"])
    assert 2 * len(true & found) / len(true | found) > 0
    f1 = 2 * len(true & found) / (len(true) + len(found))
    assert f1 == pytest.approx(expected["f1"])


def test_pipeline_finds_the_same_entities_as_the_predictor(project: Path, best: Path) -> None:
    run_python(project, SCRIPTS / "entity_pipeline.py", best, "simple")


def test_labels_of_words_are_learned_and_predicted(project: Path, tmp_path: Path) -> None:
    words = [{"words": f"He met Ada Marsh in Lorn{n}".split()} for n in range(8)]
    labels = ["O", "O", "B-PER", "I-PER", "O", "B-LOC"]
    write(tmp_path / "words.jsonl", *({**row, "labels": labels} for row in words))
    data = [f"--{part}_input={tmp_path}/words.jsonl" for part in ("train", "valid")]
    run_python(project, "train.py", *data, "--epochs=12", f"--outdir={tmp_path}/run")
    output = tmp_path / "out.jsonl"
    checkpoint = ["--checkpoint", str(tmp_path / "run" / "best")]
    run_python(
        project, "predict.py", *checkpoint, "--input", tmp_path / "words.jsonl", "--output", output
    )
    for line in output.read_text().splitlines():
        assert json.loads(line)["prediction"] == labels
    write(tmp_path / "texts.jsonl", {"words": "He met Ada Marsh in Lorn3"})
    run_python(
        project, "predict.py", *checkpoint, "--input", tmp_path / "texts.jsonl", "--output", output
    )
    found = json.loads(output.read_text())["prediction"]
    assert [(entity["label"], entity["text"]) for entity in found][0] == ("PER", "Ada Marsh")


TEXT = {"text": "Ada left Lorn", "entities": [{"start": 0, "end": 3, "label": "PER"}]}
WORDS = {"words": ["It", "rains"], "labels": ["O", "O"]}


@pytest.mark.parametrize(
    ("rows", "sentence"),
    [
        ([WORDS, {**WORDS, "labels": ["O"]}], "2: 2 words, 1 labels; expected equal numbers"),
        ([WORDS], " no label but O; expected words or entities with labels"),
        (
            [{"words": " ", "labels": " "}],
            " no label but O; expected words or entities with labels",
        ),
        (
            [{"words": "a b", "labels": "B-X N"}],
            " the labels 'B-X' and 'N'; expected a prefix on all labels or on none",
        ),
        (
            [TEXT, {**TEXT, "entities": [[9, 14, "LOC"]]}],
            "2: the entity 'LOC' has start 9 and end 14; expected 0 <= start < end <= 13,",
        ),
        (
            [TEXT, {**TEXT, "entities": [[9, 13, "LOC"], [4, 10, "X"]]}],
            "2: the entities 'left L' and 'Lorn' overlap; expected separate entities",
        ),
        (
            [TEXT, {**TEXT, "entities": [{"start": 0, "end": 2.5, "label": "X"}]}],
            "2: the end of an entity is 2.5; expected a whole number",
        ),
        ([TEXT, {**TEXT, "entities": [{"start": 0}]}], "2: the end of an entity is None; expected"),
        ([TEXT, {**TEXT, "entities": "PER"}], "2: 'entities' holds text; expected a list of"),
        ([{**TEXT, **WORDS}], " has the columns 'words' and 'text'; expected one of them, or"),
    ],
)
def test_invalid_rows_are_refused(
    rows: list[dict], sentence: str, refusals: dict[str, str]
) -> None:
    key = json.dumps(rows)
    assert refusals[key].startswith(sentence.strip())


@pytest.fixture(scope="module")
def refusals(
    project: Path, request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory
) -> dict[str, str]:
    """Return the error for each list of rows, without the file name.

    All files are read by one process, which is faster.
    """
    folder = tmp_path_factory.mktemp("refused")
    marks = test_invalid_rows_are_refused.pytestmark
    (mark,) = [m for m in marks if m.name == "parametrize"]
    found = {}
    for number, (rows, _) in enumerate(mark.args[1]):
        write(folder / f"{number}.jsonl", *rows)
        found[json.dumps(rows)] = f"{folder}/{number}.jsonl:"
    lines = run_python(
        project, SCRIPTS / "refused_files.py", *(name[:-1] for name in found.values())
    )
    return {
        key: line.removeprefix(name).strip()
        for (key, name), line in zip(found.items(), lines.stdout.splitlines(), strict=True)
    }
