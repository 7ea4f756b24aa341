"""Make the code that writes curves, model cards, tracker logs and score files fail."""

from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from typing import Any
from unittest import mock

from accelerate.tracking import TensorBoardTracker

import reporting.report
from model.metrics import Scores


def _fail(*_: Any, **__: Any) -> None:
    raise RuntimeError("broken")


@contextmanager
def reporting_fails() -> Iterator[None]:
    """Make curves, model card and TensorBoard fail, and `Scores.save` from its second call on."""
    save = Scores.save
    calls = 0

    def fail_later(self: Scores, folder: Any) -> None:
        nonlocal calls
        calls += 1
        if calls > 1:  # the first call is the check before the first step
            _fail()
        save(self, folder)

    with ExitStack() as stack:
        for place in ("draw_curves", "write_card"):
            stack.enter_context(mock.patch.object(reporting.report, place, _fail))
        for method in ("log", "finish"):
            stack.enter_context(mock.patch.object(TensorBoardTracker, method, _fail))
        stack.enter_context(mock.patch.object(Scores, "save", fail_later))
        yield
