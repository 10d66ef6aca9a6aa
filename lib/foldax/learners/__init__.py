"""Learners: one file per way to learn, all of them `foldax.Learner`s."""

from foldax.learners import gradients, losses
from foldax.learners.supervised import classifier, regressor

__all__ = ["classifier", "gradients", "losses", "regressor"]
