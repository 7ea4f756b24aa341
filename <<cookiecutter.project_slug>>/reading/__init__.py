"""From a file to a table of tokens, or to one sentence that says what is wrong with the file."""


class DataError(ValueError):
    """A data file that cannot be used: the message says what, where and what was expected."""
