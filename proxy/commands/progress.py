"""Draws a progress bar on a terminal, and nothing elsewhere."""

from __future__ import annotations

import sys
from collections.abc import Callable

WIDTH = 30  # characters of the bar


def bar(what: str) -> Callable[[int, int], None]:
    """Return a function that takes how much is done, and of how much, and draws a bar if stderr is a terminal."""
    if not sys.stderr.isatty():
        return lambda done, whole: None
    drawn = ""

    def draw(done: int, whole: int) -> None:
        nonlocal drawn
        part = done / whole if whole else 1.0
        line = f"\r{what} [{'#' * int(part * WIDTH):<{WIDTH}}] {part:4.0%}" + ("\n" if done >= whole else "")
        if line != drawn:
            drawn = line
            print(line, end="", file=sys.stderr, flush=True)

    return draw
