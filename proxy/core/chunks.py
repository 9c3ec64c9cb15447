"""Encodes HTTP/1.1 chunks (RFC 9112, section 7.1), for a body of unknown length. Pure."""

from __future__ import annotations

LAST = b"0\r\n\r\n"  # the chunk that ends a body


def chunk(data: bytes) -> bytes:
    """A chunk of some bytes; of none it would be the last one."""
    return b"%x\r\n%b\r\n" % (len(data), data)
