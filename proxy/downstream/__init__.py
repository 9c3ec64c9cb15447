"""Bytes from and to clients. Knows no session."""
