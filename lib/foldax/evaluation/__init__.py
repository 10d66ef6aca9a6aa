"""Measures of what was learned that need more than an example at a time, on NumPy arrays."""

from foldax.evaluation import generative

__all__ = ["generative"]
