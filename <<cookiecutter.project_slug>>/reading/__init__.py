"""Read data files as text, and tokenize them; errors include the file and the line."""
