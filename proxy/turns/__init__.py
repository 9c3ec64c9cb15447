"""Runs a recorded turn: reads the request, decides what it means, asks the upstream, commits the turn."""
