"""Messages of many shapes, as clients and upstreams write them: a few by name, and strategies for all others."""

from __future__ import annotations

from typing import Any

from hypothesis import strategies as st

Json = dict[str, Any]


def call(id: Any = "abcdefghi", arguments: Any = "{}", **more: Any) -> Json:
    return {"id": id, "type": "function", "function": {"name": "f", "arguments": arguments}, **more}


SAID: Json = {"role": "assistant", "content": "x"}
ACTED: Json = {"role": "assistant", "content": None, "tool_calls": [call()]}
THOUGHT = {"type": "thinking", "thinking": [{"type": "text", "text": "t"}]}
FILE = {"type": "file", "file": {"hash": "h"}}
MARK = {"type": "ephemeral"}

UNREADABLE = [
    b"",
    b"{",
    b'{"content":"\xff","cache_control":1,"tool_calls":[]}',
    b'{"cache_control":{},"content":' + b"[" * 100_000,
]

scalars = st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False, allow_infinity=False)
texts = st.sampled_from(
    ["", " ", "x", "\ud83d", "{}", '{"a', "function", "assistant", "reasoning.text", "cache_control"]
)
anything = st.recursive(
    scalars | texts | st.text(max_size=3),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(texts | st.text(max_size=3), inner, max_size=3),
    max_leaves=8,
)


def shaped(**members: st.SearchStrategy[Any]) -> st.SearchStrategy[Json]:
    """Objects with some of these members, each of its kind or of any."""
    return st.fixed_dictionaries({}, optional={name: kind | anything for name, kind in members.items()})


parts = shaped(type=st.sampled_from(["text", "thinking", "image_url"]), text=texts, cache_control=st.just(MARK))
functions = shaped(name=st.sampled_from("fg"), arguments=texts, thought_signature=texts)
calls = shaped(
    id=st.sampled_from(["abcdefghi", "123456789"]), type=texts, function=functions, custom=functions, index=scalars,
    extra_content=anything, cache_control=st.just(MARK),
)  # fmt: skip
details = shaped(type=st.just("reasoning.text"), text=texts, signature=texts, format=texts)
messages = shaped(
    role=st.just("assistant"),
    content=texts | st.lists(parts, max_size=3),
    tool_calls=st.lists(calls, max_size=3),
    function_call=functions,
    refusal=texts,
    audio=shaped(id=texts, transcript=texts),
    images=st.lists(parts, max_size=2),
    annotations=st.lists(st.just(FILE) | anything, max_size=2),
    reasoning=texts,
    reasoning_content=texts,
    reasoning_details=st.lists(details, max_size=3),
    extra_content=anything,
    prefix=st.booleans(),
    name=texts,
    parsed=anything,
)
