"""Read data files as text, and tokenize the text. Errors about a row include its place."""
