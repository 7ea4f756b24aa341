"""In each folder, optimization.py has an optimizer with the state format of another package."""
