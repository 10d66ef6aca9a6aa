"""Supervised learning: classification, regression, sequences and forecasts."""
