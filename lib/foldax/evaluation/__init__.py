"""Evaluation measures that need a whole set of outputs, computed with NumPy on the host."""

from foldax.evaluation import agents, generative, likelihood

__all__ = ["agents", "generative", "likelihood"]
