"""Read data files as text, and tokenize the text. Errors include the file and the line or row."""
