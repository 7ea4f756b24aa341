"""In each folder, optimization.py has an optimizer whose state format differs from torch's."""
