"""Trackers of experiments, one library a file: `foldax.train(..., tracker="wandb")`, `--tracker wandb`."""
