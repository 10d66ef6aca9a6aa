"""Transfer learning: parameters of a run, or of a file, as the start of another model, matched by path and shape.

    foldax run first_year.py --run-dir runs/first
    foldax run second_year.py --init-from runs/first

`--init-from RUN` (`Training.init_from`), or `foldax.train(..., initial=...)`, starts a run from the parameters and
statistics of another one. What does not fit (a new head) keeps its initialisation and is listed. With the learners'
`frozen` that is feature extraction, and with `optim.depth_decay` fine-tuning.

Continued training on new data is the same experiment, or one with the same model, over other data: parameters,
running statistics and a moving average go on; step, optimizer, schedule and early stopping start anew. So do the facts
of the data: `info.standardize` uses the new data's means. Where old and new inputs must be scaled alike, scale them by
constants of your own.

In Python, `transfer.match` shows what would fit, `transfer.renamed` gives paths other names, and
`transfer.from_safetensors` reads weights of other libraries.
"""

from __future__ import annotations

from foldax.runs.transfer.matching import Match, load_params, match, show, table
from foldax.runs.transfer.parameters import Source, read, renamed
from foldax.runs.transfer.safetensors import from_safetensors, save

__all__ = ["Match", "Source", "from_safetensors", "load_params", "match", "read", "renamed", "save", "show", "table"]
