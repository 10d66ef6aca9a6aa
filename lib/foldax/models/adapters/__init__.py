"""Models of other libraries as Flax Linen modules, one library a file."""
