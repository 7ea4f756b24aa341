"""Measure how much time a process spends in each of several phases."""

import functools
import time
from collections import defaultdict
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any


class Phases:
    """A clock that adds the elapsed time to the innermost open phase.

    Args:
        start: `time.time()` at the start of the first phase.
        first: Name of the first phase. It is open until `enter` is called.
    """

    def __init__(self, start: float, first: str) -> None:
        self.start = start
        self.seconds: dict[str, float] = defaultdict(float)
        self.marks: dict[str, float] = {}
        self._open = [first]
        self._since = start

    def _switch(self) -> None:
        now = time.time()
        self.seconds[self._open[-1]] += now - self._since
        self._since = now

    def enter(self, phase: str) -> None:
        """Close the outermost open phase, and open `phase` in its place."""
        self._switch()
        self._open[0] = phase

    @contextmanager
    def of(self, phase: str) -> Iterator[None]:
        self._switch()
        self._open.append(phase)
        try:
            yield
        finally:
            self._switch()
            self._open.pop()

    def wrap(self, owner: Any, name: str, phase: str, mark: str = "") -> None:
        """Time each call of the function `name`; record the end of the first call as `mark`."""
        function = getattr(owner, name)

        @functools.wraps(function)
        def timed(*args: Any, **named: Any) -> Any:
            with self.of(phase):
                result = function(*args, **named)
            if mark:
                self.marks.setdefault(mark, time.time() - self.start)
            return result

        setattr(owner, name, timed)

    def report(self) -> dict[str, float]:
        self._switch()
        return {**self.seconds, **self.marks}
