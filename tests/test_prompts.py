"""The questions in a terminal with 80 columns."""

from __future__ import annotations

import json
import re
import signal
import sys
from functools import partial

import pexpect
import pytest

from conftest import ROOT, SLUG, TASKS, Render, Shell, about, contents

ESCAPE = r"\x1b\[[\d;]*m"
WAITS = rf"\)({ESCAPE})?: "  # the end of a question, after the default in parentheses
LABELS = json.loads((ROOT / "cookiecutter.json").read_text(encoding="utf-8"))["__prompts__"]["task"]


class Terminal:
    """Cookiecutter in a terminal. `screen` is the output so far, without colours."""

    def __init__(self, shell: Shell) -> None:
        environment = {**shell.environment, "TERM": "xterm-256color"}
        del environment["COLUMNS"]
        self.child = pexpect.spawn(
            sys.executable,
            ["-m", "cookiecutter", str(ROOT)],
            cwd=str(shell.here),
            env=environment,
            dimensions=(24, 80),
            encoding="utf-8",
            timeout=60,
            # Reset SIGINT to its default action: if the tests run in the background, SIGINT is
            # ignored, and child processes inherit this setting.
            preexec_fn=partial(signal.signal, signal.SIGINT, signal.SIG_DFL),
        )
        self.screen = ""

    def read(self, until: object) -> None:
        self.child.expect(until)
        shown = self.child.before + (self.child.after if isinstance(until, str) else "")
        self.screen += re.sub(ESCAPE, "", shown).replace("\r", "")

    def answer(self, *answers: str) -> None:
        for answer in answers:
            self.read(WAITS)
            self.child.sendline(answer)

    def end(self) -> int:
        self.read(pexpect.EOF)
        self.child.close()
        return self.child.exitstatus


@pytest.fixture
def terminal(shell: Shell) -> Terminal:
    return Terminal(shell)


def test_enter_at_each_question_gives_the_default_project(
    terminal: Terminal, shell: Shell, render: Render
) -> None:
    terminal.answer(*[""] * 6)
    assert terminal.end() == 0
    assert contents(shell.here / SLUG) == contents(render())


def test_questions_show_their_defaults(
    task: str, terminal: Terminal, shell: Shell, render: Render
) -> None:
    number = TASKS.index(task) + 1
    terminal.answer(str(number), *[""] * 5)
    assert terminal.end() == 0
    choices = "/".join(str(choice + 1) for choice in range(len(TASKS)))
    expected = [
        "  [1/6] What the model does",
        *(f"    {i} - {LABELS.get(name, name)}" for i, name in enumerate(TASKS, 1)),
        f"    Choose from [{choices}] (1): {number}",
        "  [2/6] Human-readable name of the project (My Project): ",
        "  [3/6] Name of folder and package: a-z, 0-9 and hyphens (my-project): ",
        f"  [4/6] Purpose of the project ({about(task)['description']}, trained with PyTorch): ",
        "  [5/6] Author (Your Name): ",
        "  [6/6] Base model: a Hub id, a folder (/..., ./... or ~/...), or tiny,",
        "        which is built in and has random weights (tiny): ",
        "",
    ]
    assert terminal.screen.splitlines()[: len(expected)] == expected
    assert f"{SLUG} ({task}) is ready" in terminal.screen
    assert contents(shell.here / SLUG) == contents(render(task=task))


def test_task_is_asked_again_after_an_invalid_choice(
    terminal: Terminal, shell: Shell, render: Render
) -> None:
    terminal.answer("9", "seq2seq", "2", *[""] * 5)
    assert terminal.end() == 0
    assert terminal.screen.count("Please select one of the available options") == 2
    assert contents(shell.here / SLUG) == contents(render(task="seq2seq"))


def test_invalid_slug_ends_the_questions(terminal: Terminal, shell: Shell) -> None:
    terminal.answer("", "", "Bad Slug")
    assert terminal.end() == 1
    asked, ended = terminal.screen.split("(my-project): Bad Slug\n")
    assert ended.startswith("project_slug 'Bad Slug' is not a project name; expected words")
    assert ended.count("\n") == 1
    assert list(shell.here.iterdir()) == []


@pytest.mark.parametrize("answered", [0, 3, 5])
def test_ctrl_c_ends_the_questions_without_a_traceback(
    answered: int, terminal: Terminal, shell: Shell
) -> None:
    terminal.answer(*[""] * answered)
    terminal.read(WAITS)
    terminal.child.sendintr()
    assert terminal.end() == 1
    assert "Aborted!" in terminal.screen and "Traceback" not in terminal.screen
    assert list(shell.here.iterdir()) == []
