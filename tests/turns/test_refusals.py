"""What an upstream refuses is learned once, and what a client gets wrong is answered, never with a 500."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from proxy.core.json_bytes import members
from proxy.dialects.chat.profiles import choose
from proxy.turns.narrowing import ERROR_SIZE
from tests.support.fakes import ScriptedUpstream, completion, error, sse
from tests.support.serving import Serve
from tests.support.talk import Json, ask, assistant, calling, history, result, system, tell, user, warm_store

REFUSAL = error(400, {"error": {"message": "property 'messages.1.assistant.reasoning_content' is unsupported"}})
THOUGHT = {"reasoning_content": "let me see"}


# What an upstream refuses ------------------------------------------------------------------


@pytest.mark.parametrize("stream", [False, True])
async def test_a_refused_member_is_left_out_from_then_on(serve: Serve, tmp_path: Path, stream: bool) -> None:
    def reply(text: str) -> Any:
        return sse(THOUGHT, text) if stream else completion(text, message=THOUGHT)

    said = [user("u1"), assistant("a1"), user("u2"), assistant("a2"), user("u3"), assistant("a3"), user("u4")]
    script = [reply("a1"), REFUSAL, reply("a2"), reply("a3"), reply("a4")]
    async with ScriptedUpstream(script) as upstream:
        async with warm_store(tmp_path) as store:
            proxy = await serve(upstream.base_url, store=store)
            answers = [await ask(proxy.port, [user(f"u{n}")], stream=stream) for n in (1, 2, 3)]
            kept = await history(proxy)
        async with warm_store(tmp_path) as store:  # after a restart
            proxy = await serve(upstream.base_url, store=store)
            assert {proxy.runtime.turn_id() for _ in kept.turns} == {turn.id for turn in kept.turns}  # names go on
            answers.append(await ask(proxy.port, [user("u4")], stream=stream))
        received = [request.messages for request in upstream.requests]
    assert [(answer.status, answer.whole) for answer in answers] == [(200, True)] * 4
    assert b"a2" in answers[1].data and b"unsupported" not in answers[1].data
    assert received[1] == [said[0], {**said[1], **THOUGHT}, said[2]]
    assert received[2:] == [said[:3], said[:5], said]
    assert all(json.loads(turn.reply)["reasoning_content"] == "let me see" for turn in kept.turns)


async def test_a_refused_member_is_remembered_for_its_upstream_alone(serve: Serve) -> None:
    async with (
        ScriptedUpstream([completion("a1", message=THOUGHT), REFUSAL, completion("a2")]) as first,
        ScriptedUpstream([completion("b1", message=THOUGHT), completion("b2")]) as other,
    ):
        # Two names of this machine are two upstreams.
        more = [{"base_url": other.base_url.replace("127.0.0.1", "localhost"), "mount": "/other"}]
        proxy = await serve(first.base_url, more=more)
        for text in ("u1", "u2"):
            await ask(proxy.port, [user(text)])
        for text in ("u1", "u2"):
            await tell(proxy.port, json.dumps({"messages": [user(text)]}).encode(), path="/other", session="s2")
        assert "reasoning_content" not in first.requests[2].messages[1]
        assert other.requests[1].messages[1] == assistant("b1", **THOUGHT)


@pytest.mark.parametrize("stripped", [False, True], ids=["at-once", "again-without-it"])
@pytest.mark.parametrize(
    "refused",
    [
        {"error": {"message": "The model is overloaded with reasoning_content"}},
        {"error": {"message": "Missing `reasoning_content` field in the assistant message"}},
        {"error": {"message": "Invalid value for temperature"}},
    ],
    ids=["no-objection", "wanted-back", "another-member"],
)
async def test_other_upstream_errors_are_forwarded(serve: Serve, refused: Json, stripped: bool) -> None:
    script = [completion("a1", message=THOUGHT), *([REFUSAL] if stripped else []), error(400, refused)]
    async with ScriptedUpstream([*script, completion("a2")]) as upstream:
        proxy = await serve(upstream.base_url)
        await ask(proxy.port, [user("u1")])
        answer = await ask(proxy.port, [user("u2")])
        assert (answer.status, json.loads(answer.data)) == (400, refused)
        # What was left out in vain is not left out again: only an answer that came teaches.
        await ask(proxy.port, [user("u3")])
        assert upstream.requests[-1].messages == [user("u1"), assistant("a1", **THOUGHT), user("u3")]


async def test_an_error_longer_than_the_examined_bytes_is_forwarded_whole(serve: Serve) -> None:
    said = {"error": {"message": "x" * 64 * ERROR_SIZE}}
    async with ScriptedUpstream([completion("a1", message=THOUGHT), error(400, said)]) as upstream:
        proxy = await serve(upstream.base_url)
        await ask(proxy.port, [user("u1")])
        answer = await ask(proxy.port, [user("u2")])
    assert (answer.status, answer.whole, json.loads(answer.data)) == (400, True, said)


async def test_a_second_refusal_is_forwarded(serve: Serve) -> None:
    async with ScriptedUpstream([completion("a1", message=THOUGHT), REFUSAL, REFUSAL]) as upstream:
        proxy = await serve(upstream.base_url)
        await ask(proxy.port, [user("u1")])
        answer = await ask(proxy.port, [user("u2")])
        assert (answer.status, answer.data) == (400, REFUSAL.pieces[0])
        assert len(upstream.requests) == 3


# What a client gets wrong ------------------------------------------------------------------


@pytest.mark.parametrize("turns", [0, 2])
@pytest.mark.parametrize("mode", ["auto", "append"])
@pytest.mark.parametrize(
    "messages",
    [
        [result("call_nobody")],
        [user("and?"), result("call_nobody")],
        [calling("c1"), result("c1"), result("call_nobody"), user("and?")],
    ],
    ids=["alone", "behind-a-message", "behind-another-result"],
)
async def test_a_tool_result_without_its_call_is_a_400(
    serve: Serve, messages: list[Json], mode: str, turns: int
) -> None:
    async with ScriptedUpstream() as upstream:
        proxy = await serve(upstream.base_url)
        for turn in range(turns):
            await ask(proxy.port, [user(f"u{turn}")])
        answer = await ask(proxy.port, messages, headers=[("x-session-mode", mode)])
        assert answer.status == 400 and "call_nobody" in answer.error["message"]
        assert (answer.error["param"], answer.error["code"]) == ("messages", "invalid_request")
        assert len(upstream.requests) == turns and len((await history(proxy)).turns) == turns
        after = await ask(proxy.port, [user("still there?")])  # its place in line was given up
        assert after.status == 200


async def test_an_orphan_in_a_full_list_is_forwarded(serve: Serve) -> None:
    async with ScriptedUpstream() as upstream:
        proxy = await serve(upstream.base_url)
        await ask(proxy.port, [user("u1")])
        sent = [user("u1"), assistant("answer 1"), result("call_nobody"), user("u2")]
        answer = await ask(proxy.port, sent)
        assert (answer.status, answer.decision) == (200, "resend")
        assert upstream.requests[-1].messages == sent


@pytest.mark.parametrize("mode", ["", "Replace", "append,resend", "1"])
async def test_an_unknown_session_mode_is_a_400(serve: Serve, mode: str) -> None:
    async with ScriptedUpstream() as upstream:
        proxy = await serve(upstream.base_url)
        answer = await ask(proxy.port, [user("u1")], headers=[("x-session-mode", mode)])
        assert (answer.status, answer.error["param"]) == (400, "x-session-mode")
        assert "append" in answer.error["message"] and not upstream.requests


DEEP = b"[" * 300 + b"]" * 300
ODD = {
    "numbers": b"1, 2.50, -0, 1e999",
    "strings": b'"hello", ""',
    "literals": b"null, true",
    "lists": b'[], [{"role":"user"}]',
    "objects": b'{}, {"content":"x"}',
    "role-number": b'{"role":7,"content":"x"}',
    "role-null": b'{"role":null,"content":"x"}',
    "role-list": b'{"role":["user"],"content":"x"}',
    "role-object": b'{"role":{"a":1},"content":"x"}',
    "role-unknown": b'{"role":"narrator","content":"x"}',
    "role-surrogate": b'{"role":"\\ud800","content":"\\udfff"}',
    "role-twice": b'{"role":"user","role":"assistant","content":"x"}',
    "content-number": b'{"role":"user","content":7}',
    "content-object": b'{"role":"user","content":{"a":1}}',
    "content-odd-parts": b'{"role":"user","content":[1,null,"x",{"type":5},{"type":"text","text":9},[]]}',
    "content-missing": b'{"role":"user"}, {"role":"assistant"}',
    "content-deep": b'{"role":"user","content":' + DEEP + b"}",
    "deep": DEEP,
    "calls-number": b'{"role":"assistant","tool_calls":5}',
    "calls-odd": b'{"role":"assistant","tool_calls":[1,null,{},{"id":7,"function":"f"},{"function":{"name":["f"]}}]}',
    "call-arguments": b'{"role":"assistant","tool_calls":[{"id":"c","function":{"name":"f","arguments":[1]}}]}',
    "function-call": b'{"role":"assistant","function_call":"f"}',
    "system-odd": b'{"role":"system","content":7}, {"role":"system"}, {"role":"developer","content":[null,3]}',
    "system-deep": b'{"role":"system","content":' + DEEP + b'}, {"role":"system","content":"x"}',
    "system-late": b'{"role":"user","content":"x"}, {"role":"system","content":{}}, {"role":"developer"}',
    "surrogates": b'{"role":"user","content":"\\ud83d"}, {"role":"assistant","content":"\\ude00"}',
    "escapes": b'{"ro\\u006ce":"us\\u0065r","content":"\\u0000\\/"}',
    "numbers-long": b'{"role":"user","content":"x","n":123456789012345678901234567890,"f":1.0}',
    "assistants": b'{"role":"assistant","content":null}, {"role":"assistant","content":[]}, null',
    "nothing": b"",
}
PROFILES = ["auto", "openai", "openrouter", "mistral", "vllm", "gemini"]


@pytest.mark.parametrize("profile", PROFILES)
@pytest.mark.parametrize("odd", ODD.values(), ids=ODD)
async def test_an_unusual_message_is_forwarded_unchanged(serve: Serve, odd: bytes, profile: str) -> None:
    """The first of a session byte for byte, a later one behind what is remembered; but for what is put in order:
    calls get results, some upstreams take no two messages of one role in a row, and others know no developer."""
    habits = choose(profile, "")
    renamed = b'"developer"' in odd and not habits.developer
    untouched = not (b'"tool_calls"' in odd or habits.alternate or renamed)
    body = b'{"messages" : [' + odd + b'], "x": 1.0}'
    async with ScriptedUpstream() as upstream:
        proxy = await serve(upstream.base_url, upstream={"profile": profile})
        first = await tell(proxy.port, body, session="odd")
        assert first.status == 200 and (upstream.requests[-1].body == body or not untouched)
        for mode in ("auto", "append", "resend"):
            again = await tell(proxy.port, body, session="odd", headers=[("x-session-mode", mode)])
            plain = await ask(proxy.port, [user("and?")], session="odd")
            late = await tell(proxy.port, body, session=mode, headers=[("x-session-mode", mode)])
            assert [answer.status for answer in (again, plain, late)] == [200] * 3
        await ask(proxy.port, [system("s"), user("hello"), assistant("hi"), user("u")], session="chat")
        behind = await tell(proxy.port, body, session="chat")
        assert behind.status == 200
        if untouched and b'"system"' not in odd:
            assert members(upstream.requests[-1].body)["messages"].raw.endswith(odd.replace(b", ", b",") + b"]")


@pytest.mark.parametrize("depth", [5_000, 200_000])
@pytest.mark.parametrize("around", [b"%b", b'{"role":"user","content":%b}', b'{"role":"system","content":%b}'])
async def test_too_deeply_nested_json_is_refused(serve: Serve, around: bytes, depth: int) -> None:
    async with ScriptedUpstream() as upstream:
        proxy = await serve(upstream.base_url)
        deep = around % (b"[" * depth + b"]" * depth)
        answer = await tell(proxy.port, b'{"messages":[' + deep + b"]}")
        assert (answer.status, answer.error["code"]) == (400, "invalid_request") and not upstream.requests


@pytest.mark.parametrize("profile", PROFILES)
@pytest.mark.parametrize(
    "odd",
    [
        b'{"role":"tool"}',
        b'{"role":"tool","tool_call_id":5,"content":"x"}',
        b'{"role":"tool","tool_call_id":null}',
        b'{"role":"function","name":["f"],"content":"x"}',
        b'{"role":"tool","tool_call_id":"\\ud800"}',
    ],
)
async def test_a_malformed_tool_result_is_a_400(serve: Serve, odd: bytes, profile: str) -> None:
    async with ScriptedUpstream() as upstream:
        proxy = await serve(upstream.base_url, upstream={"profile": profile})
        await ask(proxy.port, [user("u1")])
        answer = await tell(proxy.port, b'{"messages":[' + odd + b"]}")
        assert answer.status == 400 and answer.error["code"] == "invalid_request"
        assert len(upstream.requests) == 1


@pytest.mark.parametrize("reply", [1, None, "x", [], {}, {"role": 5}, {"content": {"a": [1]}}, {"tool_calls": [1, {}]}])
async def test_an_unusual_reply_breaks_no_session(serve: Serve, reply: object) -> None:
    odd = completion("x", pieces=[json.dumps({"choices": [{"message": reply, "finish_reason": "stop"}]}).encode()])
    async with ScriptedUpstream([odd, completion("a2")]) as upstream:
        proxy = await serve(upstream.base_url)
        first = await ask(proxy.port, [user("u1")])
        second = await ask(proxy.port, [user("u2")])
        assert (first.status, first.data, second.status) == (200, odd.pieces[0], 200)
        assert upstream.requests[-1].messages[-1] == user("u2")
