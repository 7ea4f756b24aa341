"""How the arguments are shown by `--help`."""

import argparse


class HelpFormatter(argparse.ArgumentDefaultsHelpFormatter):
    """A line for each argument, and its default where there is one."""

    def __init__(self, prog: str):
        super().__init__(prog, max_help_position=34, width=100)

    def _get_help_string(self, action: argparse.Action) -> str:
        is_telling = type(action.default) in (int, float, str) and action.dest != "help"
        return f"{action.help} (%(default)s)" if is_telling else str(action.help)

    def _get_default_metavar_for_optional(self, action: argparse.Action) -> str:
        return "N" if action.type is int else "X" if action.type is float else "NAME"
