"""Chooses the part of a history that fits into a context window. Pure."""
