"""From a file to a table of tokens, or to one sentence that says what is wrong with the file."""

from .faults import DataError
from .tables import Source, distinct, is_plain_text, read_table, row_name, row_with
from .tokens import column, pad, tokenized

__all__ = [
    "DataError",
    "Source",
    "column",
    "distinct",
    "is_plain_text",
    "pad",
    "read_table",
    "row_name",
    "row_with",
    "tokenized",
]
