"""Backends that run a sweep's members past one machine, one a file."""
