"""Launchers: backends that train the members of a sweep on other machines, one per file."""
