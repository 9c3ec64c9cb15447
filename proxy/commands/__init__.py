"""Holds the commands that an operator types."""
