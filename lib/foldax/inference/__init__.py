"""Uses of a finished run: predict, export, play, cluster."""
