"""Folds a stream of chat completions into one reply. Pure."""
