"""What the bytes of an API mean. Pure."""
