"""What of a history fits into a context window. Pure."""
