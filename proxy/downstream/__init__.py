"""Reads requests from clients and writes answers to them. Knows no session."""
