"""Classes for argparse, which the scripts share."""

import argparse
from collections.abc import Sequence
from typing import Any


class OneOrMore(argparse.Action):
    """Store a single value as it is, and several as a list."""

    def __call__(
        self,
        parser: argparse.ArgumentParser,
        namespace: argparse.Namespace,
        values: str | Sequence[Any] | None,
        option_string: str | None = None,
    ) -> None:
        values = list(values or [])
        setattr(namespace, self.dest, values[0] if len(values) == 1 else values)


class HelpFormatter(argparse.ArgumentDefaultsHelpFormatter):
    """Show the description of each argument, and its default if that is a number or a string."""

    def __init__(self, prog: str):
        super().__init__(prog, max_help_position=34, width=100)

    def _get_help_string(self, action: argparse.Action) -> str:
        has_default = type(action.default) in (int, float, str) and action.dest != "help"
        return f"{action.help} (%(default)s)" if has_default else str(action.help)

    def _get_default_metavar_for_optional(self, action: argparse.Action) -> str:
        return "N" if action.type is int else "X" if action.type is float else "NAME"
