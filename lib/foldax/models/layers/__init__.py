"""Layers and other parts that networks are built from."""
