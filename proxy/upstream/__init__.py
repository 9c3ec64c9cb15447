"""Bytes to and from upstreams: an HTTP/1.1 client."""
