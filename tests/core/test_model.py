"""The words of the proxy as values: what follows from their fields."""

from __future__ import annotations

from typing import Any

from proxy.core.model import CARRIES, SIDE, SPLICED, Ask, Message, SeenPrefix, TrimPoint, Turn, has_tools

USER = Message("user", b'{"role":"user","content":"hi"}')
REPLY = Message("assistant", b'{"role":"assistant","content":"ho"}')


def turn(*asked: Message, echo: Message | None = REPLY, reply: bytes = REPLY.raw, **more: Any) -> Turn:
    return Turn(**{"id": "1", "system": None, "asked": asked, "reply": reply, "rendered": echo, **more})


def test_whether_a_request_has_tools() -> None:
    assert has_tools(b'[{"type":"function"}]')
    assert not any([has_tools(tools) for tools in (b"", b"[]", b" [ ]", b"null")])


def test_the_size_of_a_turn_grows_with_every_part() -> None:
    least = turn(reply=b"", rendered=None)
    larger = [
        turn(reply=b"x", rendered=None),
        turn(reply=b""),
        turn(USER, reply=b"", rendered=None),
        turn(USER, USER, reply=b"", rendered=None),
        turn(Message("user", USER.raw + b" " * 9), reply=b"", rendered=None),
        turn(reply=b"", rendered=None, system=b"s" * 9),
        turn(reply=b"", rendered=None, trim_point=TrimPoint(2, b"s" * 9)),
    ]
    assert all(each.size > least.size for each in larger)
    assert larger[3].size > larger[2].size < larger[4].size


def test_a_summary_tells_of_all_that_is_left_out_unless_it_says_of_how_much() -> None:
    assert TrimPoint(4, b"s").covered == 4
    assert TrimPoint(4, b"s", 2).covered == 2
    assert TrimPoint(4).covered == TrimPoint().covered == 0


def test_what_a_turn_is_stands_in_its_traits() -> None:
    told = [turn(traits=traits) for traits in (0, SIDE, CARRIES, SPLICED, SIDE | CARRIES | 40 << 8)]
    assert [each.is_side_request for each in told] == [False, True, False, False, True]
    assert [each.carries_history for each in told] == [False, False, True, False, True]
    assert [each.is_spliced for each in told] == [False, False, False, True, False]


def test_many_small_messages_are_not_taken_for_nothing() -> None:
    """The objects around a message take more memory than a short text does."""
    assert turn(*[Message("user", b"1")] * 1000).size > 1000 * 200


def test_a_request_reads_what_was_seen_before_only_when_asked() -> None:
    one, two = Message("user", b"1"), Message("user", b"2")
    plain = Ask(b"[1,2]", 0, 5, None, (one, two), None, False)
    assert (plain.messages, plain.count) == ((one, two), 2)
    read: list[int] = []

    def whole() -> tuple[Message, ...]:
        read.append(1)
        return one, two

    again = Ask(b"", 0, 0, None, (two,), None, False, seen=SeenPrefix(b"1", 0, None, 1, 1, None), whole=whole)
    assert again.count == 2 and read == []
    assert again.messages == again.messages == (one, two) and read == [1]
