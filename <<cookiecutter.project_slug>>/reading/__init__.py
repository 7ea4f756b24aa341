"""Read data files as text, and tokenize them; errors name the file and the line."""
