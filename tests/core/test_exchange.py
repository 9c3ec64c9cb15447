"""One exchange over bytes: whatever the pieces, the same bytes go on and the same reply remains."""

from __future__ import annotations

import json

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from proxy.core.exchange import RECORDED, Exchange, Verdict
from proxy.core.model import Reply
from proxy.dialects.chat import wire

SSE = "text/event-stream; charset=utf-8"
JSON = "application/json"
DONE = b"data: [DONE]\n\n"
DELTA = b'data: {"model":"m","choices":[{"index":0,"delta":{"role":"assistant","content":"ho \xc3\xa9"}}]}\n\n'
FINISH = b'data: {"choices":[{"index":0,"delta":{},"finish_reason":"stop"}]}\n\n'
FAILED = b'event: error\ndata: {"error":{"message":"overloaded"}}\n\n'
USAGE = b'data: {"choices":[],"usage":{"total_tokens":5}}\n\n'
COMPLETION = b'{"choices":[{"index":0,"message":{"role":"assistant","content":"ho"},"finish_reason":"stop"}]}'
TEXTLESS = b'{"choices":[{"message":{"role":"assistant","content":null},"finish_reason":"stop"}]}'
HTML = b"<html>502 Bad Gateway</html>"

VERDICTS = [
    ("stream with both signs", SSE, DELTA + FINISH + DONE, Verdict.COMPLETE),
    ("stream with [DONE] alone", SSE, DELTA + DONE, Verdict.COMPLETE),
    ("stream with a finish_reason alone", SSE, DELTA + FINISH, Verdict.COMPLETE),
    ("stream without its last blank line", SSE, DELTA + FINISH.strip(), Verdict.COMPLETE),
    ("stream that says it is JSON", JSON, b"\n" + DELTA + FINISH + DONE, Verdict.COMPLETE),
    ("stream without a content type", None, b": ping\n\n" + DELTA + FINISH + DONE, Verdict.COMPLETE),
    ("stream with CRLF", SSE, (DELTA + FINISH).replace(b"\n", b"\r\n"), Verdict.COMPLETE),
    ("stream with a byte order mark", SSE, b"\xef\xbb\xbf" + DELTA + FINISH + DONE, Verdict.COMPLETE),
    ("stream cut before any sign", SSE, DELTA, Verdict.INTERRUPTED),
    ("stream cut inside an event", SSE, DELTA + FINISH[:30], Verdict.INTERRUPTED),
    ("stream with an error event", SSE, DELTA + FAILED, Verdict.NOTHING),
    ("stream with an error after its finish", SSE, DELTA + FINISH + FAILED + DONE, Verdict.NOTHING),
    ("stream with an error line", SSE, DELTA + b'error: {"error":{"message":"x"}}\n', Verdict.NOTHING),
    ("stream that says nothing", SSE, DONE, Verdict.NOTHING),
    ("stream of comments", SSE, b": ping\n\n", Verdict.BROKEN),
    ("JSON", JSON, COMPLETION, Verdict.COMPLETE),
    ("JSON after white space", JSON, b"\n \n   " + COMPLETION + b"\n", Verdict.COMPLETE),
    ("JSON that says it is a stream", SSE, COMPLETION, Verdict.COMPLETE),
    ("JSON with a word of the terminator", JSON, COMPLETION.replace(b'"ho"', b'"\\ndata: [DONE]"'), Verdict.COMPLETE),
    ("JSON without text", JSON, TEXTLESS, Verdict.COMPLETE),
    ("JSON with an error", JSON, b'{"error":{"message":"x"}}', Verdict.NOTHING),
    ("JSON list with an error", JSON, b'[{"error":{"message":"x"}}]', Verdict.NOTHING),
    ("JSON of another kind", JSON, b'{"object":"list","data":[]}', Verdict.NOTHING),
    ("JSON cut short", JSON, COMPLETION[:-2], Verdict.BROKEN),
    ("JSON that is not UTF-8", JSON, COMPLETION.replace(b'"ho"', b'"\xff"'), Verdict.COMPLETE),
    ("JSON that is a number", JSON, b"42", Verdict.NOTHING),
    ("HTML", "text/html", HTML, Verdict.NOTHING),
    ("HTML that says it is JSON", JSON, b"\n" + HTML, Verdict.NOTHING),
    ("HTML behind a byte order mark", JSON, b"\xef\xbb\xbf" + HTML, Verdict.NOTHING),
    ("JSON behind a byte order mark", JSON, b"\xef\xbb\xbf" + COMPLETION, Verdict.COMPLETE),
    ("JSON with NaN", JSON, COMPLETION.replace(b'"finish', b'"logprobs":NaN,"finish'), Verdict.COMPLETE),
    (
        "JSON with NaN and no finish_reason",
        JSON,
        b'{"choices":[{"message":{"content":"ho"},"x":NaN}]}',
        Verdict.UNMARKED,
    ),
    ("JSON with the terminator behind it", SSE, COMPLETION + b"\n\n" + DONE, Verdict.NOTHING),
    ("JSON with a raw tab", JSON, COMPLETION.replace(b"ho", b"h\to"), Verdict.NOTHING),
    ("lines of JSON", "application/x-ndjson", b'{"done":false}\n{"done":true}\n', Verdict.NOTHING),
    ("plain text", "text/plain", b"Hello.", Verdict.UNMARKED),
    ("plain text that says it is JSON", JSON, b"Hello.", Verdict.UNMARKED),
    ("plain text that says it is a stream", SSE, b"Hello.\nIt is: me.\n", Verdict.UNMARKED),
    ("plain text without a content type", None, b"Hello.", Verdict.UNMARKED),
    ("what is no text", "audio/mpeg", b"\xff\xfb\x90\0\0", Verdict.NOTHING),
    ("stream that is no JSON", SSE, b"data: Hello\n\ndata: you\n\n", Verdict.NOTHING),
    ("stream cut in its first word", SSE, b": ping\n\ndat", Verdict.BROKEN),
    ("nothing", SSE, b"", Verdict.NOTHING),
    ("white space", JSON, b" \n\n ", Verdict.NOTHING),
]


def begun(
    content_type: str | None = SSE, length: int | None = None, *, status: int = 200, limit: int = 9999
) -> Exchange:
    started = Exchange(wire, limit)
    started.begin(status, content_type, length)
    return started


@pytest.mark.parametrize(
    ("content_type", "body", "verdict"), [case[1:] for case in VERDICTS], ids=[case[0] for case in VERDICTS]
)
def test_what_remains_of_an_answer(content_type: str | None, body: bytes, verdict: Verdict) -> None:
    answer = begun(content_type)
    out = answer.receive(body)
    outcome = answer.finish(clean=True)
    assert outcome.verdict is verdict
    assert (outcome.reply.message is not None) >= (verdict in RECORDED)
    assert bool(answer.unrecorded) is (verdict is Verdict.NOTHING)
    assert out + answer.release() == body


@given(st.sampled_from(VERDICTS), st.lists(st.integers(0, 400), max_size=12), st.booleans())
@example(VERDICTS[0], list(range(400)), True)
@example(("", SSE, b"\n\xef\xbb\xbf \n" + COMPLETION, Verdict.COMPLETE), list(range(9)), True)
@example(("", SSE, b" " + DONE, Verdict.BROKEN), [1], False)
def test_the_pieces_change_neither_the_bytes_nor_the_reply(
    case: tuple[str, str | None, bytes, Verdict], cuts: list[int], known: bool
) -> None:
    _, content_type, body, _ = case
    whole, pieced = (begun(content_type, len(body) if known else None) for _ in range(2))
    at = sorted({cut for cut in cuts if cut < len(body)})
    given = b"".join([pieced.receive(body[a:b]) for a, b in zip([0, *at], [*at, len(body)], strict=True)])
    at_once = whole.receive(body)  # of a body of known length the last piece waits as a whole
    assert at_once == given or (known and not at_once)
    assert pieced.terminated == whole.terminated
    assert pieced.finish(clean=True) == whole.finish(clean=True)
    assert given + pieced.release() == body
    assert pieced.size == len(body)


@pytest.mark.parametrize("body", [DELTA + FINISH, COMPLETION, b" "])
def test_the_last_byte_of_a_body_of_known_length_waits(body: bytes) -> None:
    answer = begun(SSE, len(body))
    assert answer.receive(body[:-1]) == body[:-1]
    assert answer.receive(body[-1:]) == b""
    assert answer.release() == body[-1:]


def test_a_body_that_already_waits_needs_no_byte_more() -> None:
    answer = begun(SSE, len(DELTA + DONE))
    assert answer.receive(DELTA + DONE) == DELTA
    assert answer.release() == DONE


@pytest.mark.parametrize("out", [b"", USAGE, USAGE + FINISH])
@pytest.mark.parametrize("held", [DONE, DONE + USAGE, DONE[:-1], DONE.replace(b"\n", b"\r\n")])
def test_behind_pieces_that_go_on_as_they_came_the_terminator_waits(out: bytes, held: bytes) -> None:
    answer = begun(SSE)
    for piece in (DELTA, DELTA, FINISH):
        assert answer.receive(piece) is piece
    assert answer.receive(out + held) == out and answer.terminated
    assert answer.release() == held


def test_the_terminator_waits_until_it_is_released() -> None:
    answer = begun()
    assert not answer.terminated
    assert answer.receive(DELTA + b"dat") == DELTA
    assert not answer.terminated
    assert answer.receive(b"a: [DONE]") == b""
    assert answer.terminated
    assert answer.finish(clean=True).verdict is Verdict.COMPLETE
    assert answer.release() == b"data: [DONE]"
    assert not answer.terminated
    assert answer.receive(b"\n\n: late\n\n") == b"\n\n: late\n\n"


@pytest.mark.parametrize(
    "case", [case for case in VERDICTS if case[3] in RECORDED and "plain text" not in case[0]], ids=lambda case: case[0]
)
def test_what_came_before_an_unclean_end_is_recorded_as_interrupted(
    case: tuple[str, str | None, bytes, Verdict],
) -> None:
    _, content_type, body, _ = case
    answer, whole = begun(content_type), begun(content_type)
    answer.receive(body)
    whole.receive(body)
    assert answer.finish(clean=False) == (Verdict.INTERRUPTED, whole.finish(clean=True).reply)


@pytest.mark.parametrize(
    "case", [case for case in VERDICTS if case[3] in (Verdict.NOTHING, Verdict.BROKEN)], ids=lambda case: case[0]
)
def test_an_unclean_end_of_what_says_nothing_is_a_break(case: tuple[str, str | None, bytes, Verdict]) -> None:
    _, content_type, body, _ = case
    answer = begun(content_type)
    answer.receive(body)
    assert answer.finish(clean=False).verdict is Verdict.BROKEN


@pytest.mark.parametrize("body", [DELTA + FINISH + DONE, COMPLETION])
def test_what_was_too_long_to_keep_is_a_break_also_when_it_was_cut(body: bytes) -> None:
    answer = begun(limit=len(body) - 1)
    answer.receive(body)
    assert answer.finish(clean=False) == (Verdict.BROKEN, Reply())


@pytest.mark.parametrize("status", [199, 300, 400, 429, 500])
@pytest.mark.parametrize("body", [DELTA + FINISH + DONE, COMPLETION, b'{"error":{}}', HTML])
def test_an_answer_that_is_no_success_goes_through_and_is_not_recorded(status: int, body: bytes) -> None:
    answer = begun(status=status, length=len(body), limit=1)
    assert answer.receive(body) == body
    assert not answer.terminated
    assert answer.finish(clean=True) == (Verdict.NOTHING, Reply())
    assert answer.release() == b""


def test_an_answer_whose_head_never_came_is_not_recorded() -> None:
    assert Exchange(wire, 10_000).finish(clean=True).verdict is Verdict.NOTHING


@pytest.mark.parametrize(("more", "verdict"), [(0, Verdict.COMPLETE), (-1, Verdict.BROKEN)])
@pytest.mark.parametrize("body", [DELTA + FINISH + DONE, COMPLETION])
def test_an_answer_over_the_limit_is_a_break(body: bytes, more: int, verdict: Verdict) -> None:
    answer = begun(limit=len(body) + more)
    out = b"".join([answer.receive(body[at : at + 7]) for at in range(0, len(body), 7)])
    assert answer.finish(clean=True).verdict is verdict
    assert out + answer.release() == body


def test_a_page_has_no_limit() -> None:
    answer = begun("text/html", limit=5)
    assert answer.receive(HTML) + answer.receive(HTML) == HTML * 2
    assert answer.finish(clean=True).verdict is Verdict.NOTHING


def test_the_reply_is_what_the_stream_said() -> None:
    answer = begun()
    answer.receive(DELTA + FINISH + USAGE + DONE)
    reply = answer.finish(clean=True).reply
    assert json.loads(reply.message or b"") == {"role": "assistant", "content": "ho é"}
    assert (reply.model, reply.finish_reason, reply.usage) == ("m", "stop", b'{"total_tokens":5}')


def received(*pieces: bytes, content_type: str | None = SSE, limit: int = 9999) -> Exchange:
    answer = begun(content_type, limit=limit)
    for piece in pieces:
        answer.receive(piece)
    return answer


@pytest.mark.parametrize(
    ("answer", "finished"),
    [
        (Exchange(wire, 9999), False),
        (begun(), False),
        (received(DELTA), False),
        (received(DELTA, FINISH[:30]), False),
        (received(DELTA, FINISH[:30], FINISH[30:]), True),
        (received(DELTA + FINISH + USAGE), True),
        (received(DELTA + DONE), False),  # it is `terminated`
        (received(DELTA + FINISH, limit=40), False),
        (received(COMPLETION, content_type=JSON), False),
        (received(HTML, content_type="text/html"), False),
    ],
)
def test_only_a_stream_can_say_that_it_is_whole_before_its_end(answer: Exchange, finished: bool) -> None:
    assert answer.has_finished is finished


def test_the_body_so_far_is_what_came_as_far_as_it_is_kept() -> None:
    answer = begun(limit=len(DELTA + FINISH))
    assert answer.body == b""
    for wanted, piece in [(DELTA, DELTA), (DELTA + FINISH, FINISH), (b"", USAGE), (b"", DONE)]:
        answer.receive(piece)
        assert answer.body == wanted
        assert answer.body == wanted  # looking changes nothing


def test_what_was_released_is_kept_no_longer() -> None:
    answer = received(DELTA + DONE)
    answer.release()
    assert answer.body == b""


@pytest.mark.parametrize(
    ("body", "length", "ends"),
    [(DELTA + DONE, None, True), (DELTA + DONE, len(DELTA + DONE), False), (DELTA + FINISH, None, False)],
)
def test_a_released_terminator_is_the_end_where_no_length_promises_more(
    body: bytes, length: int | None, ends: bool
) -> None:
    answer = begun(SSE, length)
    answer.receive(body)
    assert not answer.ends_itself
    answer.release()
    assert answer.ends_itself is ends


@pytest.mark.parametrize(
    ("end", "line_end", "came"),
    [
        (end, line_end, n)
        for end, line_end in [(b"\n", b"\n\n"), (b"\r\n", b"\r\n\r\n")]
        for n in range(len(line_end) + 1)
    ],
)
def test_who_comes_back_gets_the_line_end_of_a_terminator_that_came_without_it(
    end: bytes, line_end: bytes, came: int
) -> None:
    whole = (DELTA + FINISH + DONE).replace(b"\n", end)
    seen = whole[: len(whole) - len(line_end) + came]
    assert received(seen).answer == whole
    assert received(seen[:50], seen[50:]).answer == whole


@pytest.mark.parametrize(
    ("body", "content_type"),
    [
        (b"", SSE),
        (DELTA, SSE),
        (DELTA + b"data: [DON", SSE),
        (DELTA + FINISH, SSE),
        (DELTA + DONE + b": late\n\n", SSE),
        (DELTA + b"data: [DONE] \n\n", SSE),
        (DELTA + b"data: [DONE]\n\n\n", SSE),
        (DELTA.replace(b"\n", b"\r\n") + DONE, SSE),
        (COMPLETION, JSON),
        (COMPLETION.replace(b'"ho"', b'"\\ndata: [DONE]"'), JSON),
        (HTML + b"data: [DONE]", "text/html"),
    ],
)
def test_a_replayed_body_gets_no_more_than_the_terminators_line_end(body: bytes, content_type: str) -> None:
    assert received(body, content_type=content_type).answer == body


@pytest.mark.parametrize(
    ("body", "content_type", "reason"),
    [
        (HTML, "text/html", "unreadable"),
        (COMPLETION + b"x", JSON, "unreadable"),
        (b"data: Hello\n\n", SSE, "unreadable"),
        (b'{"error":{"message":"x"}}', JSON, "error"),
        (DELTA + FAILED, SSE, "error"),
        (b'{"object":"list","data":[]}', JSON, "empty"),
        (DONE, SSE, "empty"),
        (b"", SSE, "empty"),
        (COMPLETION, JSON, ""),
        (DELTA, SSE, ""),
        (b"Hello.", "text/plain", ""),
    ],
)
def test_an_answer_that_is_not_recorded_says_why(body: bytes, content_type: str, reason: str) -> None:
    answer = received(body, content_type=content_type)
    answer.finish(clean=True)
    assert answer.unrecorded == reason
    broken = received(body, content_type=content_type)
    broken.finish(clean=False)
    assert broken.unrecorded == ""


def test_an_error_needs_no_reason() -> None:
    answer = begun(status=500)
    answer.receive(HTML)
    answer.finish(clean=True)
    assert answer.unrecorded == ""


@pytest.mark.parametrize(("clean", "verdict"), [(True, Verdict.NOTHING), (False, Verdict.BROKEN)])
def test_what_comes_in_an_encoding_that_is_not_undone_goes_on_as_it_is(clean: bool, verdict: Verdict) -> None:
    answer = Exchange(wire, 5)
    answer.begin(200, SSE, None, True)
    assert answer.unrecorded == "encoding"  # to be said in the head
    assert answer.receive(DELTA + DONE) == DELTA + DONE
    assert answer.finish(clean) == (verdict, Reply())
    assert answer.unrecorded == ("encoding" if clean else "")


@pytest.mark.parametrize("body", [COMPLETION, HTML])
def test_the_beginning_of_a_body_is_no_use_without_its_end(body: bytes) -> None:
    answer = begun(None, len(body))
    assert answer.receive(body) == b""
    assert answer.release() == body


@given(
    st.lists(st.binary(max_size=9) | st.sampled_from([DELTA, DONE, COMPLETION, b"data: ", b"{", b"\n\n"]), max_size=9)
)
def test_no_answer_makes_an_exchange_raise_or_lose_a_byte(pieces: list[bytes]) -> None:
    answer = begun(None)
    out = b"".join([answer.receive(piece) for piece in pieces])
    answer.finish(clean=True)
    assert out + answer.release() == b"".join(pieces)
