"""Transfer learning: a run, or a file, gives the initial parameters of another model, matched by path and shape.

    foldax run first_year.py --run-dir runs/first
    foldax run second_year.py --init-from runs/first

`--init-from RUN` (`Training.init_from`), or `foldax.train(..., initial=...)`, starts a run from the parameters and
statistics of another one. Arrays that do not fit, such as a new head, keep their initialisation and are listed. With
`frozen` parameters of a learner this is feature extraction, with `optim.layer_decay` it is fine-tuning.

To train on with new data, use the same experiment, or one with the same model, over the new data: parameters, running
statistics and a moving average are kept; step, optimizer, schedule and early stopping start anew. So do the statistics
of the data: `info.standardize` uses the means of the new data. Where old and new inputs must be scaled alike, scale
them by constants of your own.

In Python, `transfer.match` shows which arrays would fit, `transfer.rename` gives paths other names, and
`transfer.from_safetensors` reads weights of other libraries.
"""

from foldax.runs.transfer.matching import Match, load_params, match, show, table
from foldax.runs.transfer.parameters import Source, read, rename
from foldax.runs.transfer.safetensors import from_safetensors, save

__all__ = ["Match", "Source", "from_safetensors", "load_params", "match", "read", "rename", "save", "show", "table"]
