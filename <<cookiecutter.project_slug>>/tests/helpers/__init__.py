"""Helpers that several test modules import. No test module imports another test module."""
