"""What the log looks like, on real descriptors: pipes and files."""

from __future__ import annotations

import asyncio
import json
import logging
import os
import pty
import re
import shlex
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from proxy.observe.log import LogHandler, is_journal, loop_fault

REQUEST = {"method": "POST", "path": "/v1/chat/completions", "status": 200, "request": "r1", "in": 3, "total_ms": 1.25}
TIME = r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d\.\d{3}Z"


class Pipe:
    """The reading end of a descriptor that is logged to."""

    def __init__(self) -> None:
        self._read, self.write = os.pipe()
        os.set_blocking(self._read, False)

    def all(self) -> str:
        """What has been written since the last look."""
        try:
            return os.read(self._read, 1 << 20).decode()
        except BlockingIOError:
            return ""

    def close(self) -> None:
        os.close(self._read)
        os.close(self.write)


@pytest.fixture
def pipe() -> Iterator[Pipe]:
    pipe = Pipe()
    proxy = logging.getLogger("proxy")
    before = proxy.level
    yield pipe
    proxy.setLevel(before)
    pipe.close()


def record(message: str, *arguments: object, level: int = logging.INFO, error: BaseException | None = None) -> Any:
    info = (type(error), error, error.__traceback__) if error else None
    return logging.LogRecord("proxy.daemon", level, "", 0, message, arguments, info)


def raised(error: Exception, cause: Exception | None = None) -> Exception:
    try:
        raise error from cause
    except Exception as caught:
        return caught


async def test_a_request_line_in_each_format(pipe: Pipe) -> None:
    said = {}
    for form in ("logfmt", "json", "console"):
        LogHandler(pipe.write, "info", form, journal=False).request(logging.INFO, REQUEST)
        await asyncio.sleep(0)
        said[form] = pipe.all()
    tail = "request=r1 in=3 total_ms=1.25\n"
    where = "method=POST path=/v1/chat/completions status=200"
    assert re.fullmatch(rf"time={TIME} level=info logger=request {where} {tail}", said["logfmt"])
    assert re.fullmatch(rf"{TIME} INFO    request: POST /v1/chat/completions 200 {tail}", said["console"])
    told = json.loads(said["json"])
    assert re.fullmatch(TIME, told.pop("time")) and told.pop("level") == "info" and told.pop("logger") == "request"
    assert told == REQUEST


async def test_request_lines_are_batched_and_others_written_at_once_in_order(pipe: Pipe) -> None:
    lines = LogHandler(pipe.write, "info", "console", journal=True)
    lines.request(logging.INFO, REQUEST)
    lines.request(logging.WARNING, REQUEST)
    assert pipe.all() == ""
    lines.handle(record("listening on %s", "here"))
    first, second, third = pipe.all().splitlines()
    assert (first[:3], second[:3]) == ("<6>", "<4>") and third == "<6>daemon: listening on here"
    lines.request(logging.INFO, REQUEST)
    await asyncio.sleep(0)
    assert pipe.all().count("\n") == 1


@pytest.mark.parametrize("form", ["console", "logfmt", "json"])
@pytest.mark.parametrize("journal", [True, False])
def test_an_exception_is_logged_with_type_and_place_without_its_message(pipe: Pipe, form: str, journal: bool) -> None:
    error = raised(ValueError("canary"), raised(KeyError("canary")))
    lines = LogHandler(pipe.write, "info", form, journal)
    lines.handle(record("a fault\n\x1b[2J", level=logging.ERROR, error=error))
    said = pipe.all()
    assert "canary" not in said and "\x1b" not in said
    assert all([words in said for words in ("ValueError", "KeyError", "observe/test_log.py:", "in raised", "a fault")])
    assert len(said.splitlines()) == 1 or form == "console"
    if journal:
        assert all([line.startswith("<3>") for line in said.splitlines()])
    elif form == "logfmt":
        assert dict([pair.split("=", 1) for pair in shlex.split(said)])["logger"] == "daemon"
    elif form == "json":
        assert json.loads(said)["message"] == "a fault\n\x1b[2J"


def test_circular_exception_causes_are_logged_once(pipe: Pipe) -> None:
    one, other = raised(ValueError()), raised(KeyError())
    one.__cause__, other.__cause__ = other, one
    LogHandler(pipe.write, "info", "console", journal=False).handle(record("x", error=one))
    assert pipe.all().count("ValueError") == 1


@pytest.mark.parametrize("level", ["debug", "info", "warning", "error"])
def test_records_below_the_level_are_not_written(pipe: Pipe, level: str) -> None:
    lines = LogHandler(pipe.write, "critical", "json", journal=False)
    lines.adjust(level, "logfmt")
    logger = logging.getLogger("proxy.daemon")
    logger.addHandler(lines)
    for number in (logging.DEBUG, logging.INFO, logging.WARNING, logging.ERROR):
        logger.log(number, "x")
    logger.removeHandler(lines)
    levels = ["debug", "info", "warning", "error"]
    assert re.findall(r"level=(\w+)", pipe.all()) == levels[levels.index(level) :]


def test_format_auto_is_console_at_a_terminal_and_in_the_journal_else_logfmt(pipe: Pipe, tmp_path: Path) -> None:
    LogHandler(pipe.write, "info", "auto", journal=False).handle(record("x"))
    LogHandler(pipe.write, "info", "auto", journal=True).handle(record("x"))
    first, second = pipe.all().splitlines()
    assert first.startswith("time=") and second == "<6>daemon: x"
    master, terminal = pty.openpty()
    LogHandler(terminal, "info", "auto", journal=False).handle(record("x"))
    assert os.read(master, 100).endswith(b" INFO    daemon: x\r\n")
    os.close(master)
    os.close(terminal)


def test_the_journal_is_recognised_by_its_file(pipe: Pipe, tmp_path: Path) -> None:
    (tmp_path / "other").touch()
    found, other = os.fstat(pipe.write), (tmp_path / "other").stat()
    assert is_journal(pipe.write, {"JOURNAL_STREAM": f"{found.st_dev}:{found.st_ino}"})
    assert not is_journal(pipe.write, {"JOURNAL_STREAM": f"{other.st_dev}:{other.st_ino}"})
    assert not is_journal(pipe.write, {}) and not is_journal(10**6, {"JOURNAL_STREAM": "1:1"})


def test_a_log_that_cannot_be_written_is_ignored(pipe: Pipe) -> None:
    os.set_blocking(pipe.write, False)
    lines = LogHandler(pipe.write, "info", "console", journal=True)
    for _ in range(3000):
        lines.handle(record("x" * 100))
    assert len(pipe.all()) >= 65536 // 2
    lines.handle(record("y"))
    assert pipe.all().endswith("<6>daemon: y\n")


async def test_an_uncaught_exception_is_logged_without_objects(caplog: pytest.LogCaptureFixture) -> None:
    loop = asyncio.get_running_loop()
    loop.set_exception_handler(loop_fault)

    def fails(data: bytes) -> None:
        raise ValueError

    loop.call_soon(fails, b"canary")
    await asyncio.sleep(0)
    loop.set_exception_handler(None)
    [said] = caplog.records
    assert said.name == "proxy.loop" and "Exception in callback" in said.getMessage()
    assert "canary" not in said.getMessage() and said.exc_info
