"""From a file to a table of tokens, or to one sentence that says what is wrong with the file."""
