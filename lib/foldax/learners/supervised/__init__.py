"""Supervised learning: classification, regression and sequences."""
