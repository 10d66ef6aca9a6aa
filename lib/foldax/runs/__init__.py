"""Run folders: created, locked, logged, shown, loaded and reproduced."""
