"""How a list of messages is matched with the history. Pure."""
