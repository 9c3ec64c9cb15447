"""Writes the log, counts what happens, and renders the counters for Prometheus."""
