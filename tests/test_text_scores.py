"""Scores of generated texts equal those that sacrebleu computes with the targets in the file."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import sacrebleu

from conftest import Render
from running import run_python

# After six steps, the generated texts match the targets only in part.
SOURCES = ("h o u s e", "s p e a k", "{x}", "Ünïcode  two spaces", "a b", " lead")
TARGETS = ("HH AW S", "S P IY K", "{A: A}", "Ü ñ  two", "AE B", " L IY D")


def test_scores_equal_those_of_sacrebleu_on_the_texts_of_the_file(
    render: Render, tmp_path: Path
) -> None:
    project = render(task="seq2seq")
    rows = [{"source": s, "target": t} for s, t in zip(SOURCES, TARGETS, strict=True)]
    data = tmp_path / "rows.jsonl"
    data.write_text("".join(json.dumps(row) + "\n" for row in rows * 8), encoding="utf-8")
    outdir = tmp_path / "run"
    limit = ["--max_new_tokens", "16"]
    both = ["--train_input", str(data), "--valid_input", str(data), "--outdir", str(outdir)]
    run_python(project, "train.py", *both, *limit, "--max_steps", "6", "--eval_batch_size", "5")
    found = tmp_path / "found.jsonl"
    command = ["--checkpoint", str(outdir / "last"), "--input", str(data), "--output", str(found)]
    run_python(project, "predict.py", *command, *limit)
    lines = found.read_text(encoding="utf-8").splitlines()
    generated = [json.loads(line)["prediction"] for line in lines]
    targets = [row["target"] for row in rows * 8]
    log = json.loads((outdir / "log.json").read_text(encoding="utf-8"))
    scores = list(log.values())[-1]["valid_log"]
    matches = [t.strip() == g.strip() for t, g in zip(targets, generated, strict=True)]
    assert scores["exact_match"] == pytest.approx(100 * sum(matches) / len(matches))
    expected = sacrebleu.corpus_chrf(generated, [targets]).score
    assert scores["chrf"] == pytest.approx(expected)
    assert scores["bleu"] == pytest.approx(sacrebleu.corpus_bleu(generated, [targets]).score)
    assert 0 < expected < 100
