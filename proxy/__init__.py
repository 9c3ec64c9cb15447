"""A reverse proxy that gives any OpenAI-compatible API a memory."""

__version__ = "0.2.0"
