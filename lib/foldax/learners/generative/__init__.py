"""Generative models: variational autoencoders, adversarial networks, diffusion."""
