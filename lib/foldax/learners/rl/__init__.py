"""Reinforcement learning: policy gradients, Q-learning and actor-critic methods."""
