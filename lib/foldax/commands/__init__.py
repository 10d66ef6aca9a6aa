"""Commands of the command line, beside those of `foldax.cli`: their options, and what they call."""
