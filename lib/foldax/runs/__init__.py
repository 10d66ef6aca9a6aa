"""What is on disk and on screen: the run folder, its log, progress, plots and tables."""
