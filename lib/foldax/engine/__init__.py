"""The driver: it knows nothing of what is learned, and meets the learners only in an experiment."""
