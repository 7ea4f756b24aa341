"""More than one device, or more than it holds: weights, memory and data in parts."""
