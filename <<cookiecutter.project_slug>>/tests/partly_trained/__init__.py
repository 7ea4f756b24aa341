"""A model with parameters that are frozen, never used, or used only from some step on."""
