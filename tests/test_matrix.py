"""Projects for combinations of task and kind of base model are rendered, trained and used.

`make test` does this for one combination, `make test-all` for all of them. test_projects.py runs
the projects' own tests; test_rendering.py checks types.
"""

from __future__ import annotations

import json
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from conftest import ROOT, SCRIPTS, TASKS, about, bake, some, wait_for
from running import ENVIRONMENT, run, run_python

SHORT = ["--max_steps", "40", "--batch_size", "8", "--save_steps", "2"]


@pytest.mark.parametrize("task", some(TASKS))
@pytest.mark.parametrize("base", some(["tiny", "folder"]))
def test_project_is_rendered_trained_killed_and_used(task: str, base: str, tmp_path: Path) -> None:
    answers = {"task": task, "description": 'It\'s "quoted" \\ and 日本語'}
    if base == "folder":
        tiny = ROOT / "templates" / task / "tiny"
        answers["base_model"] = str(tmp_path / "base")
        save_base = [SCRIPTS / "save_random_base.py", about(task)["auto_class"]]
        run_python(tmp_path, *save_base, tiny, answers["base_model"])
    project = bake(tmp_path / "out", answers)
    run(project, sys.executable, "-m", "ruff", "check", "--no-cache", ".")
    run(project, sys.executable, "-m", "ruff", "format", "--no-cache", "--check", ".")

    whole = run_python(project, "train.py", *SHORT, "--outdir", "whole")
    assert f"parameters from {answers.get('base_model', base)}" in whole.stdout
    killed = subprocess.Popen(
        [sys.executable, "train.py", *SHORT],
        cwd=project,
        env=ENVIRONMENT,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
    )
    wait_for(lambda: (project / "outputs" / "last").exists())
    killed.send_signal(signal.SIGKILL)
    assert killed.wait() == -signal.SIGKILL
    run_python(project, "train.py", "--restore_dir", "auto")
    for name in ("best/model", "last/model", "last/optimizer"):
        files = [project / folder / f"{name}.safetensors" for folder in ("outputs", "whole")]
        assert files[0].read_bytes() == files[1].read_bytes(), name

    lines = (project / "data" / "valid.jsonl").read_text(encoding="utf-8").splitlines()[:8]
    (project / "new.jsonl").write_text("\n".join(lines) + "\n", encoding="utf-8")
    run_python(project, "predict.py", "--input", "new.jsonl", "--output", "predicted.jsonl")
    predicted = (project / "predicted.jsonl").read_text(encoding="utf-8").splitlines()
    assert len(predicted) == len(lines)
    assert all("prediction" in json.loads(line) for line in predicted)
