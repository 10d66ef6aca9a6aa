"""Wrappers that change or watch another learner."""
