"""Pure functions and values: histories, matching, windows, exchanges. No I/O."""
