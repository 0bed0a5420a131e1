"""Training, evaluation and what the command line does."""
