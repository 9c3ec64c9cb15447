"""A stream of chat completions, folded into one reply. Pure."""
