"""foldax: a training run is a fold of one pure function."""
