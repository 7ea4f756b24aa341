"""The task chat: target tokens, refused rows and templates, packing, and the end of generation."""

from __future__ import annotations

import json
import re
import shutil
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TypeAlias

import pytest

from conftest import ROOT, SCRIPTS, SLUG, Render, some
from running import run_python

TEMPLATES = ROOT / "tests" / "fixtures" / "chat_templates"


@pytest.fixture(scope="module")
def project(render: Render, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A project shared by all tests of this module."""
    folder = tmp_path_factory.mktemp("chat") / SLUG
    return Path(shutil.copytree(render(task="chat"), folder))


Files: TypeAlias = dict[str, list[dict[str, object]]]


def turn(role: str, content: object) -> dict[str, object]:
    return {"role": role, "content": content}


def write(path: Path, rows: Sequence[Mapping[str, object]]) -> Path:
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    return path


def read_files(project: Path, folder: Path, files: Files, **options: object) -> list[str]:
    """Write and read files; return for each its number of examples, or the error.

    The path of the folder is removed from the errors.
    """
    paths = [write(folder / f"{name}.jsonl", rows) for name, rows in files.items()]
    out = run_python(project, SCRIPTS / "chat_rows.py", json.dumps(options), *paths).stdout
    return out.replace(f"{folder}/", "").splitlines()


ASKED = turn("user", "A?")
ANSWERED = turn("assistant", "B.")
GOOD: dict[str, object] = {"messages": [ASKED, ANSWERED]}
PAIR: dict[str, object] = {"prompt": "A?", "completion": "B."}
# Refused messages, and the beginning of the error. They are written as the second row of a file.
BAD: dict[str, tuple[object, str]] = {
    "role": ([ASKED, turn("tool", "B.")], "a message has the role 'tool'; expected one of system"),
    "no_role": ([ASKED, {"content": "B."}], "a message has the role None; expected one of system"),
    "no_answer": ([ASKED], "no answer to predict; expected a message of the assistant"),
    "empty": ([], "'messages' holds an empty list; expected messages"),
    "text": ("A?", "'messages' holds text; expected a list of messages"),
    "object": (ASKED, "'messages' holds an object; expected a list of messages"),
    "texts": (["A?"], "'messages' holds a list with text; expected messages"),
    "number": ([ASKED, turn("assistant", 5)], "the content of a message is a number; expected"),
    "null": ([ASKED, turn("assistant", None)], "the content of a message is null; expected text"),
    "parts": ([ASKED, turn("assistant", [{"text": "B."}])], "the content of a message is a list"),
    "calls": ([ASKED, {**ANSWERED, "tool_calls": [1]}], "a message has the key 'tool_calls'"),
    "first": ([ANSWERED, ASKED, ANSWERED], "the first message is an answer; expected a message"),
    "mark": (
        [ASKED, turn("assistant", "a<|im_end|>b")],
        "an answer contains '<|im_end|>', its",
    ),
}


def test_malformed_row_is_refused_in_one_line(project: Path, tmp_path: Path) -> None:
    files: Files = {name: [GOOD, {"messages": messages}] for name, (messages, _) in BAD.items()}
    found = read_files(project, tmp_path, files)
    assert len(found) == len(BAD)
    for line, (name, (_, words)) in zip(found, BAD.items(), strict=True):
        assert line.startswith(f"{name}.jsonl:2: {words}")


def test_file_must_have_either_messages_or_pairs(project: Path, tmp_path: Path) -> None:
    files: Files = {
        "both": [{**GOOD, **PAIR}],
        "half": [{"prompt": "A?"}],
        "neither": [{"text": "A?"}],
    }
    files |= {"prompt": [PAIR, {**PAIR, "prompt": []}], "right": [PAIR, PAIR]}
    files |= {"other": [{**GOOD, "prompt": "A?", "prompt_id": 1}]}
    assert read_files(project, tmp_path, files) == [
        "both.jsonl: has the columns 'messages', 'prompt' and 'completion'; expected only "
        "messages or only prompts and completions, or --messages_column messages",
        "half.jsonl:1: no column 'completion', and no 'messages'; the file has 'prompt'",
        "neither.jsonl:1: no column 'prompt', and no 'messages'; the file has 'text'",
        "prompt.jsonl:2: 'prompt' holds an empty list; expected messages",
        "2",
        "1",
    ]
    both: Files = {"both": files["both"]}
    assert read_files(project, tmp_path, both, messages_column="messages") == ["1"]


def test_conversations_without_a_target_after_truncation_are_refused_or_omitted(
    project: Path, tmp_path: Path
) -> None:
    long: dict[str, object] = {"messages": [turn("user", "word " * 60), ANSWERED]}
    empty: dict[str, object] = {"messages": [turn("user", " "), ANSWERED]}
    files: Files = {"some": [GOOD, long, GOOD, long], "all": [long]}
    words = "--max_len 40 removes all targets of 2 of 4 conversations, the first at some.jsonl:2"
    expected = "expected a larger --max_len"
    assert read_files(project, tmp_path, files, max_len=40) == [
        f"some.jsonl: {words}; {expected}, or --drop_without_target",
        f"all.jsonl: {words.replace('2 of 4', '1 of 1').replace('some.jsonl:2', 'all.jsonl:1')}; "
        f"{expected}",
    ]
    file = tmp_path / "some.jsonl"
    blank: dict[str, object] = {"messages": [ASKED, turn("assistant", "")]}
    blank_file = write(tmp_path / "blank.jsonl", [GOOD, blank])
    data = [f"--train_input={file}", f"--valid_input={blank_file}"]
    options = ["--max_len=40", "--drop_without_target", "--dry_run", f"--outdir={tmp_path}/run"]
    out = run_python(project, "train.py", *data, *options).stdout
    assert out.count("they are omitted") == 1
    assert f"{words.replace('some', f'{tmp_path}/some')}; they are omitted" in out
    assert "train: 2 examples" in out
    cut = re.search(r"cut to --max_len 40: 2 of 4 \(by (\d+) to \1 tokens, (\d+) in all\)", out)
    assert cut is not None and int(cut[2]) == 2 * int(cut[1]) > 0
    assert f"with an empty message: 1, first {blank_file}:2" in out
    write(file, [GOOD, GOOD, empty])
    out = run_python(project, "train.py", *data, *options).stdout
    assert f"with an empty message: 1, first {file}:3" in out


@pytest.mark.parametrize("script", ["chat_formats", "chat_packing"])
def test_formats_are_read_and_packing_keeps_the_gradient(script: str, project: Path) -> None:
    """The docstring of each script describes what it checks."""
    run_python(project, SCRIPTS / f"{script}.py")


def test_loss_equals_an_independent_computation_for_each_chat_template(project: Path) -> None:
    run_python(project, SCRIPTS / "chat_losses.py", TEMPLATES)


REPLY = """
import json, sys
from transformers import AutoModelForCausalLM, AutoTokenizer
path, messages = sys.argv[1], json.loads(sys.argv[2])
model = AutoModelForCausalLM.from_pretrained(path).eval()
tokenizer = AutoTokenizer.from_pretrained(path)
inputs = tokenizer.apply_chat_template(
    messages, add_generation_prompt=True, return_dict=True, return_tensors="pt"
)
(ids,) = model.generate(**inputs, max_new_tokens=40, do_sample=False)
new = ids[inputs["input_ids"].shape[1] :]
text = tokenizer.apply_chat_template(messages, tokenize=False)
ends = model.generation_config.eos_token_id
print(json.dumps([tokenizer.convert_ids_to_tokens(new), text, ends, tokenizer.decode(new[:-1])]))
"""
ANSWERS = {"Red?": "A warm colour.", "Blue?": "A cold one.", "Ape?": "An animal. Also a verb."}


@pytest.mark.parametrize("template", some(["header", None]))
def test_transformers_stops_at_the_end_of_turn_token_of_training(
    template: str | None, project: Path, tmp_path: Path
) -> None:
    """Test a template whose end-of-turn token is not the EOS token, and the default template."""
    files = [TEMPLATES / f"{template}.jinja"] if template else []
    run_python(project, SCRIPTS / "chat_base.py", tmp_path / "base", *files)
    rows = [{"messages": [turn("user", q), turn("assistant", a)]} for q, a in ANSWERS.items()]
    many = write(tmp_path / "many.jsonl", rows * 160)
    few = write(tmp_path / "few.jsonl", rows)
    options = [f"--train_input={many}", f"--valid_input={few}", f"--model_id={tmp_path}/base"]
    options += ["--batch_size=6", "--epochs=1", "--lr=3e-3", "--max_new_tokens=0"]
    out = run_python(project, "train.py", *options, f"--outdir={tmp_path}/run").stdout
    assert ("DEFAULT_TEMPLATE of" in out) == (template is None)

    best = tmp_path / "run" / "best"
    (tmp_path / "empty").mkdir()
    question, answer = next(iter(ANSWERS.items()))
    messages = json.dumps([turn("user", question)])
    done = run_python(tmp_path / "empty", "-c", REPLY, best, messages)
    tokens, text, ends, reply = json.loads(done.stdout.splitlines()[-1])
    if template:
        assert tokens[-1] == "<|eot_id|>"
        assert ends == [1026, 2]
        assert "<|start_header_id|>user<|end_header_id|>\n\nRed?<|eot_id|>" in text
    else:
        assert tokens[-1] == "<|im_end|>"
        assert ends == 2
        assert text == "<|user|>\nRed?<|im_end|>\n"
    assert reply == answer

    command = ["predict.py", f"--checkpoint={best}"]
    asked = write(tmp_path / "asked.jsonl", [{"prompt": question}])
    answered = tmp_path / "answered.jsonl"
    run_python(project, *command, f"--input={asked}", "--column=prompt", f"--output={answered}")
    found = [json.loads(line) for line in answered.read_text(encoding="utf-8").splitlines()]
    assert found == [{"prompt": question, "prediction": answer}]


def test_run_with_packing_writes_samples_with_answers(project: Path, tmp_path: Path) -> None:
    options = ["--packing", "--targets=last", "--max_len=200", "--max_steps=3"]
    run_python(project, "train.py", *options, f"--outdir={tmp_path}/run")
    log = json.loads((tmp_path / "run" / "log.json").read_text())["Epoch 0"]["valid_log"]
    assert set(log) == {"loss", "perplexity", "count"}
    samples = (tmp_path / "run" / "samples.txt").read_text(encoding="utf-8")
    assert samples.count("  expected:  ") == samples.count("  generated: ") == 4
    assert samples.startswith("<|im_start|>")
