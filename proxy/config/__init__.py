"""Reads the configuration, one YAML file, and refuses what it does not know."""
