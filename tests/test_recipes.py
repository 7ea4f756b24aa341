"""Each recipe in docs/recipes/ can be installed by the commands of its page, and works."""

from __future__ import annotations

import os
import re
import shutil
import sys
from pathlib import Path

import pytest

from conftest import ROOT, SLUG, Render, contents, some
from recipes.rows import write_rows
from running import run, run_python

RECIPES = ROOT / "docs" / "recipes"
SCRIPTS = Path(__file__).parent / "recipes"
NAMES = sorted(page.parent.name for page in RECIPES.glob("*/README.md"))
IN_FULL = NAMES if "TEST_ALL" in os.environ else ["least"]
ARGUMENTS = {
    "distillation": ["--softness", "3.0"],  # stock checkpoints do not contain this argument
    "reward": ["--target_column", "target"],  # pairs are tested by test_contract.py
    "lstm": ["--hidden_size", "16"],
}
TEACHER = """
from transformers import AutoConfig, AutoModelForSequenceClassification
config = AutoConfig.from_pretrained("tiny", id2label={0: "ham", 1: "spam"})
AutoModelForSequenceClassification.from_config(config).save_pretrained("teacher")
"""
# A recipe, a file, a text in this file, its replacement, and the beginning of the run's error.
MISTAKES = [
    (
        *("least", "modeling.py", "(self, counts, labels)", "(self, counts)"),
        "model/modeling.py: Model.forward has no parameter 'labels', which the data set returns",
    ),
    (
        *("least", "dataset.py", 'row["label"]', 'row["lable"]'),
        "model/dataset.py: generate_dataset cannot read data/train.jsonl (KeyError: 'lable'; at "
        "model/dataset.py:18)",
    ),
    (
        *("least", "modeling.py", "logits, labels)", "logits, labels, reduction='none')"),
        "model/modeling.py: Model.forward returns a loss of (2,); expected a scalar",
    ),
    (
        *("least", "modeling.py", "self.post_init()", "pass"),
        "model/modeling.py: the checkpoint of Model.save_pretrained cannot be loaded: ",
    ),
    (
        *("lstm", "modeling.py", "loss=total / items", "loss=total / len(labels)"),
        "model/modeling.py: the loss of Model.forward is not divided by num_items_in_batch",
    ),
    (
        *("tagging", "metrics.py", '"detection_f05": 1.25', '"f05": 1.25'),
        "model/metrics.py: Scores.compute returns no 'detection_f05'",
    ),
    (
        *("tagging", "metrics.py", "outputs.tag_logits", "outputs.tags"),
        "model/metrics.py: Scores fails on the first examples (AttributeError: ",
    ),
    (
        *("tagging", "configuration.py", "self.tags =", "self.temperature = self.tags ="),
        "model/modeling.py: Model.save_pretrained fails (ValueError: ",
    ),
    (
        *("optimizer", "optimization.py", "return LambdaLR(optimizer, factor)", "return factor"),
        "model/optimization.py: build_scheduler returns function; expected ",
    ),
    (
        *("optimizer", "optimization.py", "p.requires_grad]", "p.requires_grad and p.ndim > 1]"),
        "model/optimization.py: classifier.distilbert.embeddings.LayerNorm.weight requires a "
        "gradient and is in the parameter groups of build_optimizer 0 times",
    ),
    (
        *("tagging", "metrics.py", "join(self.samples)", "join(self.sample)"),
        "model/metrics.py: Scores fails on the first examples (AttributeError: ",
    ),
    (
        *("tagging", "prediction.py", '{"prediction": [tags', '{"tags": [tags'),
        "model/prediction.py: Predictor returns [{'tags': ",
    ),
    (
        *("tagging", "prediction.py", "found[row][n]", "found[row][n][0]"),
        "model/prediction.py: Predictor fails on the first row (TypeError: ",
    ),
]


def put_in_place(recipe: str, project: Path) -> None:
    """Install a recipe in the folder of a project, by the commands of its page."""
    page = (RECIPES / recipe / "README.md").read_text(encoding="utf-8")
    (commands,) = re.findall(r"^```sh\n(.+?)^```", page, re.DOTALL | re.MULTILINE)
    run(project, "sh", "-e", "-c", commands, RECIPES=str(RECIPES))


@pytest.fixture
def rewritten(recipe: str, render: Render, tmp_path: Path) -> Path:
    """A project with an installed recipe, and with data for it."""
    project = Path(shutil.copytree(render(task="classification"), tmp_path / SLUG))
    put_in_place(recipe, project)
    write_rows(recipe, project / "data")
    if recipe == "distillation":
        run_python(project, "-c", TEACHER)
    return project


def lines_of(recipe: str) -> int:
    files = (RECIPES / recipe / "model").glob("*.py")
    return sum(bool(line.strip()) for f in files for line in f.read_text("utf-8").splitlines())


def test_recipe_least_has_at_most_40_nonblank_lines() -> None:
    assert lines_of("least") <= 40


def test_index_lists_each_recipe() -> None:
    index = (RECIPES / "README.md").read_text(encoding="utf-8")
    assert sorted(re.findall(r"\]\((\w+)/README\.md\)", index)) == NAMES


@pytest.mark.parametrize("recipe", NAMES)
def test_recipe_changes_only_files_in_model(recipe: str, render: Render, tmp_path: Path) -> None:
    original = render(task="classification")
    project = Path(shutil.copytree(original, tmp_path / SLUG))
    put_in_place(recipe, project)
    before = contents(original)
    after = contents(project)
    changed = [n for n in before.keys() | after.keys() if before.get(n) != after.get(n)]
    assert changed
    assert [name for name in changed if not name.startswith("model/")] == []
    assert not {"model/base.py", "model/interface.py"} & set(changed)


@pytest.mark.parametrize("processes", some([2, 1]))
@pytest.mark.parametrize("recipe", IN_FULL)
def test_recipe_is_trained_killed_resumed_and_loaded(
    recipe: str, processes: int, rewritten: Path
) -> None:
    size = ["--epochs", "2", "--batch_size", str(8 // processes)]
    arguments = [*size, *ARGUMENTS.get(recipe, [])]
    run_python(rewritten, SCRIPTS / "kill_and_resume.py", str(processes), *arguments)
    if processes > 1 or not (rewritten / "model" / "prediction.py").exists():
        return
    best = rewritten / "runs" / "whole-1" / "best"
    inputs = ["--input", "data/valid.jsonl", "--output", "predictions.jsonl"]
    done = run_python(rewritten, "predict.py", "--checkpoint", best, *inputs)
    # The user is not asked whether to trust the code.
    assert "custom code" not in done.stdout + done.stderr
    rows = (rewritten / "data" / "valid.jsonl").read_text(encoding="utf-8").count("\n")
    predictions = (rewritten / "predictions.jsonl").read_text(encoding="utf-8")
    assert predictions.count('"prediction"') == rows


@pytest.mark.parametrize("recipe", IN_FULL)
def test_recipe_passes_the_projects_own_tests(recipe: str, rewritten: Path) -> None:
    run(rewritten, sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", timeout=900)
    run_python(rewritten, "train.py", "--dry_run", *ARGUMENTS.get(recipe, []))
    run(rewritten, sys.executable, "-m", "mypy", "model", "tests/interface_types.py")


@pytest.mark.skipif("TEST_ALL" not in os.environ, reason="takes a minute")
@pytest.mark.parametrize("recipe", ["contrastive"])
def test_contrastive_gradient_does_not_depend_on_chunks_or_processes(
    recipe: str, rewritten: Path
) -> None:
    done = run_python(rewritten, SCRIPTS / "split_of_a_step.py")
    *same, accumulated = map(float, done.stdout.split())
    assert max(same) < 1e-5
    assert accumulated > 1e-3  # with accumulation, a pair has fewer negatives


@pytest.mark.parametrize(
    ("recipe", "file", "before", "after", "sentence"),
    MISTAKES if "TEST_ALL" in os.environ else MISTAKES[:2],
)
def test_mistake_in_model_is_reported_before_the_first_save(
    recipe: str, file: str, before: str, after: str, sentence: str, rewritten: Path
) -> None:
    path = rewritten / "model" / file
    code = path.read_text(encoding="utf-8")
    assert before in code
    path.write_text(code.replace(before, after), encoding="utf-8")
    done = run_python(rewritten, "train.py", "--epochs", "1", code=2)
    assert done.stderr.splitlines()[-1].startswith(f"train.py: {sentence}")
    assert "Traceback" not in done.stderr
    assert not (rewritten / "outputs" / "last").exists()


@pytest.mark.skipif("TEST_ALL" not in os.environ, reason="takes a minute")
@pytest.mark.parametrize("recipe", ["tagging"])
def test_scores_that_are_not_reduced_over_the_ranks_are_refused(
    recipe: str, rewritten: Path
) -> None:
    path = rewritten / "model" / "metrics.py"
    code = path.read_text(encoding="utf-8")
    path.write_text(code.replace('reduce(self.counts, "sum")', "self.counts"), encoding="utf-8")
    launch = ["-m", "accelerate.commands.launch", "--multi_gpu", "--num_processes", "2"]
    arguments = ["train.py", "--epochs", "1", "--batch_size", "4"]
    done = run(rewritten, sys.executable, *launch, *arguments, code=1)
    assert "(Scores.compute has to reduce it over the ranks)" in done.stderr
