"""The engine: it compiles and runs the fold, and knows learners only through `foldax.Learner`."""
