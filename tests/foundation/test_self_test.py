"""What the start checks of aiohttp: it fits as installed, and each part that does not is named, with what to do."""

from __future__ import annotations

import ast
import asyncio
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import uvloop
from aiohttp import http_parser, web

from proxy.errors import UnfitLibrary
from proxy.foundation.http_internals import response_parser
from proxy.foundation.self_test import refuse_unfit, unfit

PACKAGE = Path(__file__).parents[2] / "proxy"
PURE_PYTHON = partial(response_parser, kind=http_parser.HttpResponseParserPy)


@pytest.fixture(params=[asyncio.new_event_loop, uvloop.new_event_loop])
def loop(request: pytest.FixtureRequest) -> Iterator[asyncio.AbstractEventLoop]:
    made = request.param()
    yield made
    made.close()


def test_the_installed_aiohttp_passes_the_self_test(loop: asyncio.AbstractEventLoop) -> None:
    refuse_unfit(loop)


def test_the_pure_python_parser_is_refused_with_a_remedy(loop: asyncio.AbstractEventLoop) -> None:
    assert str(unfit(loop, {}, PURE_PYTHON)).endswith(
        "works without its compiled extension, and would take stray bytes for an answer. Install a built package of it:"
        " pip install --force-reinstall --only-binary aiohttp aiohttp"
    )
    switched = unfit(loop, {"AIOHTTP_NO_EXTENSIONS": "1"}, PURE_PYTHON)
    assert str(switched).endswith("an answer. Remove AIOHTTP_NO_EXTENSIONS from the environment.")


def test_serve_is_refused_when_the_self_test_fails(
    loop: asyncio.AbstractEventLoop, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delattr(web.BaseRequest, "_prepare_hook")
    with pytest.raises(
        UnfitLibrary, match=r"^aiohttp [\d.]+ is not as the proxy needs it \(the hook before a response\)"
    ):
        refuse_unfit(loop)


# The compiled parser with the habits of another release: a method of a compiled class is no function of Python.


def altered(change: Callable[[Any], None]) -> Callable[[asyncio.AbstractEventLoop, bool], Any]:
    class Parser:
        feed_data: Any = None

        def __init__(self, loop: asyncio.AbstractEventLoop, is_head: bool) -> None:
            inner = response_parser(loop, is_head)
            self.feed_data, self.feed_eof = inner.feed_data, inner.feed_eof
            change(self)

    return Parser


def forgets_what_has_begun(parser: Any) -> None:
    parser.feed_eof = lambda: None


def gives_three_things_at_once(parser: Any) -> None:
    feed = parser.feed_data
    parser.feed_data = lambda data: [(message, body, data) for message, body in feed(data)[0]]


def swallows_errors(parser: Any) -> None:
    feed = parser.feed_data

    def swallow(data: bytes) -> Any:
        try:
            return feed(data)
        except Exception:
            return [], False, b""

    parser.feed_data = swallow


def raises_at_the_end(parser: Any) -> None:
    def end() -> None:
        raise RuntimeError

    parser.feed_eof = end


@pytest.mark.parametrize(
    ("change", "named"),
    [
        (forgets_what_has_begun, "bytes that nobody asked for"),
        (gives_three_things_at_once, "an answer with a length"),
        (swallows_errors, "a malformed chunk"),
        (raises_at_the_end, "an answer with a length"),
    ],
)
def test_a_changed_parser_behaviour_is_named(
    loop: asyncio.AbstractEventLoop, change: Callable[[Any], None], named: str
) -> None:
    assert f"({named})" in str(unfit(loop, {}, altered(change)))
    assert unfit(loop, {}, altered(lambda parser: None)) is None


def test_a_missing_connection_attribute_is_named(loop: asyncio.AbstractEventLoop) -> None:
    class Handler:
        transport = None

    assert "(the connection of a client: writing_paused)" in str(unfit(loop, {}, handler=Handler))


# Names that only the one module uses

INTERNAL = {
    *["HttpResponseParser", "EMPTY_PAYLOAD", "BaseProtocol", "http_exceptions", "_prepare_hook", "output_size"],
    *["total_bytes", "writer", "payload_writer", "_payload_writer", "_payload", "_protocol"],
}
OTHERS = sorted(str(file.relative_to(PACKAGE)) for file in PACKAGE.rglob("*.py") if file.parent.name != "foundation")


@pytest.mark.parametrize("name", OTHERS)
def test_only_the_foundation_uses_undocumented_aiohttp(name: str) -> None:
    for node in ast.walk(ast.parse((PACKAGE / name).read_text())):
        if isinstance(node, ast.ImportFrom) and (node.module or "").partition(".")[0] == "aiohttp":
            assert node.module == "aiohttp"  # the names of its own modules are none of its documentation's
            assert not INTERNAL & {each.name for each in node.names}
        if isinstance(node, ast.Attribute) and ast.unparse(node.value) != "internals":
            assert (node.attr in INTERNAL, node.lineno) == (False, node.lineno)
