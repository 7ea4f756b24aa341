"""In each folder, optimization.py has an optimizer with Python numbers that change in each step."""
