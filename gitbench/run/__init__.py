"""A run's options and matrix, and cases in, judged results out."""
