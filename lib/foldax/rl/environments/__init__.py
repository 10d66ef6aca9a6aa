"""The library's own environments, one a file: pure functions that need no other package, rendered with Pillow."""
