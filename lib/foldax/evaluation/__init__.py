"""Measures of what was learned that need more than an example at a time, on NumPy arrays."""

from foldax.evaluation import agents, generative, likelihood

__all__ = ["agents", "generative", "likelihood"]
