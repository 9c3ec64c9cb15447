"""Formats log lines and writes them to a descriptor.

A line has the format console, logfmt or json; in the journal it begins with its priority. Lines about requests are
batched and written once per pass of the event loop, all others at once. Of an exception only its type and the place
where it was raised are written: its message may quote what a client sent. Knows no request and no configuration.
"""

from __future__ import annotations

import asyncio
import json
import logging
import os
import re
import time
from collections.abc import Mapping
from functools import lru_cache
from typing import Any

import orjson

_PRIORITIES = {logging.DEBUG: 7, logging.INFO: 6, logging.WARNING: 4, logging.ERROR: 3, logging.CRITICAL: 2}
_WORDS = {level: logging.getLevelName(level).lower() for level in _PRIORITIES}
_BARE = re.compile(r"[!#-<>-~]+")  # a value that logfmt takes without quotes
_CONTROL = re.compile(r"[\x00-\x09\x0b-\x1f\x7f-\x9f]")
Fields = Mapping[str, Any]


def is_journal(descriptor: int, environ: Mapping[str, str]) -> bool:
    """Whether the descriptor is connected to the journal of systemd."""
    try:
        found = os.fstat(descriptor)
    except OSError:
        return False
    return environ.get("JOURNAL_STREAM") == f"{found.st_dev}:{found.st_ino}"


class LogHandler(logging.Handler):
    """Writes log records to a descriptor. `form` is console, logfmt, json or auto: console at a terminal and in the
    journal, else logfmt."""

    def __init__(self, descriptor: int, level: str, form: str, journal: bool) -> None:
        super().__init__()
        self._descriptor, self._journal = descriptor, journal
        self._waiting: list[str] = []
        self._second, self._said = 0, ""
        self.adjust(level, form)

    def adjust(self, level: str, form: str) -> None:
        """Change the level and the format, from the next line on."""
        self.setLevel(level.upper())
        logging.getLogger("proxy").setLevel(level.upper())
        people = self._journal or os.isatty(self._descriptor)
        self._form = form if form != "auto" else "console" if people else "logfmt"

    def install(self) -> None:
        """Become the handler of all loggers in this process. Libraries may log warnings and errors only: at the debug
        level some log what they were given."""
        root = logging.getLogger()
        root.handlers = [self]
        root.setLevel(logging.WARNING)
        # nothing here says them, and each is a call to the kernel or more
        logging.logThreads = logging.logProcesses = logging.logMultiprocessing = False

    def emit(self, record: logging.LogRecord) -> None:
        fields: dict[str, Any] = {"message": record.getMessage()}
        if record.exc_info and record.exc_info[1]:
            fields["error"] = _placed(record.exc_info[1])
        self._add(record.levelno, record.name.removeprefix("proxy."), fields)
        self.flush()

    def request(self, level: int, fields: Fields) -> None:
        """Write a line about a request. `fields` begin with method, path and status, and no value needs quotes."""
        if not self._waiting:
            asyncio.get_running_loop().call_soon(self.flush)
        self._add(level, "request", fields)

    def _add(self, level: int, name: str, fields: Fields) -> None:
        word = _WORDS.get(level, "info")
        if self._form == "json":
            line = orjson.dumps({"time": self._stamp(), "level": word, "logger": name, **fields}, default=str).decode()
        elif self._form == "logfmt":
            line = f"time={self._stamp()} level={word} logger={name} {_pairs(fields)}"
        else:
            line = _for_people(fields)
            line = f"{name}: {line}" if self._journal else f"{self._stamp()} {word.upper():7} {name}: {line}"
        if self._journal:
            mark = f"<{_PRIORITIES.get(level, 6)}>"
            line = mark + line.replace("\n", "\n" + mark)
        self._waiting.append(line)

    def _stamp(self) -> str:
        second, milliseconds = divmod(time.time_ns() // 1_000_000, 1000)
        if second != self._second:
            self._second, self._said = second, time.strftime("%Y-%m-%dT%H:%M:%S", time.gmtime(second))
        return "%s.%03dZ" % (self._said, milliseconds)  # noqa: UP031 - half the time of an f-string

    def flush(self) -> None:
        """Write the waiting lines. Lines that cannot be written are dropped, so that a log never blocks a request."""
        if not self._waiting:
            return
        lines, self._waiting = self._waiting, []
        data = ("\n".join(lines) + "\n").encode(errors="backslashreplace")
        try:
            while data:
                data = data[os.write(self._descriptor, data) :]
        except OSError:
            pass


def loop_fault(loop: asyncio.AbstractEventLoop, context: dict[str, Any]) -> None:
    """Log an exception that the event loop caught, without the objects that asyncio would show: they hold content."""
    error = context.get("exception")
    where = str(context.get("message", "")).partition("(")[0]
    logging.getLogger("proxy.loop").error("%s", where, exc_info=error)


def _for_people(fields: Fields) -> str:
    if "message" not in fields:
        method, path, status, *_ = fields.values()
        return f"{method} {path} {status} {_pairs(fields).split(' ', 3)[3]}"
    said = _CONTROL.sub(lambda found: f"\\x{ord(found[0]):02x}", str(fields["message"]))
    return f"{said}\n{fields['error']}" if "error" in fields else said


def _pairs(fields: Fields) -> str:
    if "message" in fields:
        fields = {name: value if _BARE.fullmatch(value) else json.dumps(value) for name, value in fields.items()}
    return _template(tuple(fields)) % tuple(fields.values())


@lru_cache(256)
def _template(names: tuple[str, ...]) -> str:
    """Return a template of `name=%s` pairs; filling it takes half the time of joining the pairs of each line."""
    return " ".join([f"{name}=%s" for name in names])


def _placed(error: BaseException) -> str:
    """Format the types of an exception and its causes, and the file, line and function of each step."""
    told, seen = ["Traceback:"], set()
    each: BaseException | None = error
    while each and id(each) not in seen:
        seen.add(id(each))
        frames, step = [], each.__traceback__
        while step:
            code = step.tb_frame.f_code
            frames.append(f"  {code.co_filename}:{step.tb_lineno} in {code.co_qualname}")
            step = step.tb_next
        told += [type(each).__qualname__, *frames]
        each = each.__cause__ or (None if each.__suppress_context__ else each.__context__)
    return "\n".join(told)
