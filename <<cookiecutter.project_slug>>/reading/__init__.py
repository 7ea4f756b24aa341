"""Read data files as text, and tokenize the text. Error messages include the file and the line."""
