"""What no documentation promises and the proxy needs all the same: internals of aiohttp, and a test that they fit."""
