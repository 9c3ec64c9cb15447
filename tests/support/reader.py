"""A slow reader of streams and bodies, written from what the clients' libraries do and from nothing of ours.

openai-python 3 (`_streaming.py`: each line decoded strictly, `json.loads`), openai-node 7 (`core/streaming.js`: each
line decoded by a TextDecoder, which takes a byte order mark off and puts U+FFFD for what is no UTF-8; `JSON.parse`) and
eventsource-parser 4 beneath the AI SDK (the standard; only `[DONE]` itself is the end). In one thing it is kinder than
they are: an event that the end of the stream leaves pending is read where it can be, as upstreams forget its last line
end. Left out, for no chat stream has them: events named `thread.…`, which the official libraries keep for themselves,
and lines of the field `error`, which is llama.cpp's.
"""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Iterator
from typing import Any, NamedTuple, NoReturn


class Read(NamedTuple):
    """`text` of the first choice; `whole` unless the library raised behind it, `failed` where it was told an error."""

    text: str
    whole: bool = True
    failed: bool = False


def is_pending(body: bytes) -> bool:
    """Whether the stream ends within an event."""
    last = [line for line in (b"", *lines(body)) if not line.startswith(b":")][-1]
    return bool(last) or body[-1:] not in (b"\r", b"\n", b"")


class _Failed(Exception):
    """The library raises an APIError: the upstream reports a failure."""


def lines(body: bytes) -> list[bytes]:
    """Lines end with CR, LF or CRLF, and with the stream."""
    found, line, at = [], b"", 0
    while at < len(body):
        end = 2 if body[at : at + 2] == b"\r\n" else 1 if body[at : at + 1] in (b"\r", b"\n") else 0
        if end:
            found.append(line)
            line = b""
        else:
            line += body[at : at + 1]
        at += end or 1
    return [*found, line] if line else found


def python(body: bytes) -> Read:
    return _read(_python_events(body), json.loads, lambda data: data.startswith("[DONE]"))


def node(body: bytes) -> Read:
    return _read(_node_events(body), parsed, lambda data: data.startswith("[DONE]"))


def ai_sdk(body: bytes) -> Read:
    text = body.decode(errors="replace").removeprefix("\ufeff")
    return _read(
        _standard_events([line.decode() for line in lines(text.encode())]), parsed, lambda data: data == "[DONE]"
    )


READERS: list[Callable[[bytes], Read]] = [node, python, ai_sdk]


def parsed(text: str) -> Any:
    """JSON.parse."""

    def refused(name: str) -> NoReturn:
        raise ValueError(name)

    return json.loads(text, parse_constant=refused, parse_int=float)


def whole_python(body: bytes) -> str | None:
    """What openai-python makes of a body that is not streamed; None where it raises, or gives no message. That Python
    makes no integer of 5,000 digits is no matter of the library's."""
    return _content(lambda raw: json.loads(raw, parse_int=float), body)


def whole_node(body: bytes) -> str | None:
    return _content(parsed, body.decode(errors="replace").removeprefix("\ufeff"))


def _content(load: Callable[[Any], Any], body: Any) -> str | None:
    try:
        content = load(body)["choices"][0]["message"]["content"]
    except (ValueError, LookupError, TypeError):
        return None
    return content if isinstance(content, str) else None


def paired(text: str) -> str:
    """With two halves of a character in a row as one."""
    together: str = json.loads(json.dumps(text))
    return together


def _read(events: Iterator[str], load: Callable[[str], Any], is_end: Callable[[str], bool]) -> Read:
    text = ""
    try:
        for data in events:
            if is_end(data):
                break
            chunk = load(data)
            if isinstance(chunk, dict) and _truthy(chunk.get("error")):
                raise _Failed
            text += _said(chunk)
    except _Failed:
        return Read(text, False, True)
    except (ValueError, RecursionError):
        return Read(text, False)
    return Read(text)


def _truthy(value: Any) -> bool:
    return value not in (None, False, "", 0) and not (isinstance(value, float) and math.isnan(value))


def _said(chunk: Any) -> str:
    choices = chunk.get("choices") if isinstance(chunk, dict) else None
    for choice in choices if isinstance(choices, list) else []:
        content = choice.get("delta", {}).get("content") if not choice.get("index") else None
        if isinstance(content, str):
            return content
    return ""


def _python_events(body: bytes) -> Iterator[str]:
    event, last_id, retry = "", "", False
    data: list[str] = []
    for raw in lines(body):
        line = raw.decode()
        if not line:
            if event or data or last_id or retry:
                yield "\n".join(data)
            event, retry, data = "", False, []
            continue
        name, value = _field(line)
        match name:
            case "event":
                event = value
            case "data":
                data.append(value)
            case "id" if "\0" not in value:
                last_id = value
            case "retry":
                try:
                    int(value)
                except ValueError:
                    continue
                retry = True
    yield from _pending(data, json.loads)


def _node_events(body: bytes) -> Iterator[str]:
    event = ""
    data: list[str] = []
    for raw in lines(body):
        line = raw.decode(errors="replace").removeprefix("\ufeff")
        if not line:
            if event or data:
                yield "\n".join(data)
            event, data = "", []
            continue
        name, value = _field(line)
        if name == "event":
            event = value
        elif name == "data":
            data.append(value)
    yield from _pending(data, parsed)


def _standard_events(all_lines: list[str]) -> Iterator[str]:
    data: list[str] = []
    for line in all_lines:
        if not line:
            if data:
                yield "\n".join(data)
            data = []
        elif (field := _field(line))[0] == "data":
            data.append(field[1])
    yield from _pending(data, parsed)


def _field(line: str) -> tuple[str, str]:
    if line.startswith(":"):
        return "", ""
    name, _, value = line.partition(":")
    return name, value.removeprefix(" ")


def _pending(data: list[str], load: Callable[[str], Any]) -> Iterator[str]:
    text = "\n".join(data)
    try:
        if data and not text.startswith("[DONE]"):
            load(text)
    except (ValueError, RecursionError):
        return
    if data:
        yield text
