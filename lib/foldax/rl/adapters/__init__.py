"""Adapters to libraries of environments, one library a file."""
