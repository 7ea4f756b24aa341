"""Arguments are read from the command line and YAML files, also by their names in transformers."""

import importlib
import importlib.util
import json
import re
import subprocess
import sys
from pathlib import Path

import pytest
from accelerate.tracking import LOGGER_TYPE_TO_CLASS
from transformers import SchedulerType

import train
from conftest import ROOT
from errors import RunError
from helpers.assertions import read_state
from training.arguments import read_config
from training.config import SCHEDULERS, TRACKERS
from training.contract import Task
from training.options import evaluate

RUN_SCRIPT = """
import runpy, sys
try:
    runpy.run_path(sys.argv[0], run_name="__main__")
finally:
    print({"torch", "transformers", "numpy"} & sys.modules.keys(), file=sys.stderr)
"""


@pytest.mark.parametrize(
    ("command", "code", "words"),
    [
        ("train.py --help", 0, "--train_input"),
        ("predict.py --help", 0, "--checkpoint"),
        ("export.py --help", 0, "--dtype"),
        ("sweep.py --help", 0, "--search"),
        ("train.py --nothing", 2, "--nothing"),
        ("train.py --lr -1", 2, "--lr -1.0: expected at least 0"),
        ("train.py --config none.yaml", 2, "--config none.yaml: cannot be read"),
        ("predict.py --output none/out.jsonl", 2, "there is no folder none"),
    ],
)
def test_help_and_errors_in_arguments_are_printed_before_torch_is_imported(command, code, words):
    script = f"import sys; sys.argv[:] = {command.split()}\n{RUN_SCRIPT}"
    done = subprocess.run([sys.executable, "-c", script], cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == code, done.stderr
    assert words in done.stdout + done.stderr
    assert done.stderr.splitlines()[-1] == "set()"


@pytest.mark.parametrize(
    ("name", "constant"),
    [
        ("configuration", "BASE_MODEL"),
        *((name, "OPTIONS") for name in ("configuration", "dataset", "metrics", "prediction")),
    ],
)
def test_constants_read_without_an_import_equal_those_of_the_imported_module(name, constant):
    if importlib.util.find_spec(f"model.{name}") is None:
        pytest.skip(f"no model/{name}.py")
    module = importlib.import_module(f"model.{name}")
    found = evaluate(Path(str(module.__file__)), constant, None)
    # A function in the options is a different object: remove its address from the text.
    assert re.sub(" at 0x\\w+", "", f"{found}") == re.sub(
        " at 0x\\w+", "", f"{getattr(module, constant, None)}"
    )


@pytest.mark.parametrize(
    "source",
    [
        "OPTIONS: dict[str, dict] = {'n': {'type': int}}",
        "OPTIONS = {}\nOPTIONS['a'] = {}",
        "OPTIONS = {}\nOPTIONS.update(a={})",
        "OPTIONS = {}\nif True:\n    OPTIONS = {'a': {}}",
        "OTHERS = {'a': {}}\nOTHERS['b'] = {}\nOPTIONS = dict(OTHERS)",
        "def made():\n    return {sep: {}}\nfrom os import sep\nOPTIONS = made()",
        "from string import digits as OPTIONS",
        "import os.path\nOPTIONS = {os.path.sep: {}}",
        "from string import *\nOPTIONS = {digits: {}}",
        "COUNT, OPTIONS = 1, {}",
        "COUNT = OPTIONS = {}\nCOUNT['a'] = {}",
        "for OPTIONS in [{'a': {}}]:\n    pass",
        "class Dataset:\n    OPTIONS = {'a': {}}",
    ],
)
def test_options_are_evaluated_without_imports_that_they_do_not_need(source, tmp_path):
    (tmp_path / "dataset.py").write_text(f"import none_such\n{source}", encoding="utf-8")
    values: dict = {}
    exec(source, values)
    assert evaluate(tmp_path / "dataset.py", "OPTIONS", None) == values.get("OPTIONS")


def test_choices_are_all_trackers_and_all_schedules_that_need_no_metric():
    assert sorted(map(str, LOGGER_TYPE_TO_CLASS)) == sorted(TRACKERS)
    others = {"reduce_lr_on_plateau", "greedy"}
    assert {schedule.value for schedule in SchedulerType} - others == {*SCHEDULERS}


def test_arguments_come_from_a_yaml_file_and_the_command_line(arguments, tmp_path):
    path = tmp_path / "run.yaml"
    values = dict(zip((a[2:] for a in arguments[::2]), arguments[1::2], strict=True))
    lines = [f"{name}: {json.dumps(value)}" for name, value in values.items()]
    lines += ["max_steps: 1", "lr: 1e-3", "gradient_checkpointing: false", "seed: 7", "patience:"]
    path.write_text("\n".join(lines), encoding="utf-8")
    config, _ = read_config(Task(), ["--config", str(path), "--seed", "8"])
    assert config.lr == 1e-3
    assert config.seed == 8
    assert config.max_steps == 1
    assert config.max_len == 48
    assert config.patience is None


@pytest.mark.parametrize(
    ("text", "sentence"),
    [
        ("batchsize: 4", "no argument batchsize; did you mean batch_size?"),
        ("compile: 3", "compile: 3; expected true or false"),
        ("- 4", "expected lines of"),
        ("lr: [", "cannot be read"),
        ("lr: 1\nlr: 2", "lr is given twice; expected it once"),
        (
            "lr: 1\nlearning_rate: 2",
            "lr is given twice, as lr and as learning_rate",
        ),
        ("[lr]: 1", "no argument"),
    ],
)
def test_invalid_yaml_file_is_refused(text, sentence, tmp_path):
    (tmp_path / "run.yaml").write_text(text, encoding="utf-8")
    with pytest.raises(RunError, match=sentence.replace("?", r"\?")):
        train.main(["--config", str(tmp_path / "run.yaml")])


@pytest.mark.parametrize(
    ("alias", "name", "value"),
    [
        ("output_dir", "outdir", "elsewhere"),
        ("num_train_epochs", "epochs", 5),
        ("per_device_train_batch_size", "batch_size", 3),
        ("per_device_eval_batch_size", "eval_batch_size", 3),
        ("gradient_accumulation_steps", "accumulation", 4),
        ("learning_rate", "lr", 0.5),
        ("max_length", "max_len", 77),
        ("warmup_steps", "num_warmup_steps", 9),
        ("eval_steps", "valid_steps", 11),
        ("early_stopping_patience", "patience", 2),
        ("dataloader_num_workers", "num_workers", 1),
        ("hub_model_id", "push_to_hub", "mine"),
    ],
)
def test_argument_names_of_transformers_are_accepted(alias, name, value, tmp_path):
    arguments = ["--outdir", str(tmp_path / "run"), f"--{alias}", str(value)]
    config, _ = read_config(Task(), arguments)
    assert getattr(config, name) == value


@pytest.mark.parametrize(
    "argument", ["--batch_size=0", "--epochs=-1", "--lr=nan", "--max_len=1", "--seed=-1"]
)
def test_value_out_of_range_is_refused(argument, tmp_path):
    name, _, value = argument.partition("=")
    with pytest.raises(
        RunError, match=f"{name} {value}.*: expected (a finite number of )?at least "
    ):
        read_config(Task(), ["--outdir", str(tmp_path / "run"), argument])


@pytest.mark.parametrize(
    ("given", "sentence"),
    [
        ("--valid_size=0.2", "--valid_size 0.2: nothing is held out"),
        ("--valid_fold=1", "--valid_fold 1: nothing is held out"),
        ("--lr_scheduler_type=constant", "--num_warmup_steps 3: .*expected constant_with_warmup"),
    ],
)
def test_argument_without_effect_is_refused(given, sentence, tmp_path):
    with pytest.raises(RunError, match=sentence):
        read_config(Task(), ["--outdir", str(tmp_path / "run"), "--num_warmup_steps=3", given])


@pytest.mark.proof
def test_resumed_run_keeps_saved_arguments_unless_given_again(arguments, tmp_path, capsys):
    flags = ["--tf32", "--gradient_checkpointing"]
    train.main([*arguments, "--max_steps", "1", "--weight_decay", "0.3", *flags])
    last = str(tmp_path / "run" / "last")
    (tmp_path / "run.yaml").write_text("tf32: false", encoding="utf-8")
    config, _ = read_config(Task(), ["--restore_dir", last, "--config", f"{tmp_path}/run.yaml"])
    assert (config.tf32, config.gradient_checkpointing) == (False, True)
    capsys.readouterr()
    train.main(["--restore_dir", last, "--max_steps", "2", "--logging_steps", "1"])
    args = read_state(tmp_path / "run" / "last")["args"]
    assert args["weight_decay"] == 0.3
    assert args["logging_steps"] == 1
    shown = capsys.readouterr().out
    assert "--max_steps is now 2; it was 1" in shown
    assert "--logging_steps is now 1; it was 10" in shown


@pytest.mark.proof
def test_max_len_beyond_the_positions_of_the_model_is_refused(arguments, tmp_path):
    try:
        train.main([*arguments, "--max_len", "9999", "--max_steps", "1"])
    except RunError as error:
        assert str(error).startswith("--max_len 9999: ")
        assert not (tmp_path / "run").exists()
    else:
        pytest.skip("this model has no learned positions")
