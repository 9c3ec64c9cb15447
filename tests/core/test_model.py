"""The words of the proxy as values: what follows from their fields."""

from __future__ import annotations

from proxy.core.model import Message, Turn

USER = Message("user", b'{"role":"user","content":"hi"}')
REPLY = Message("assistant", b'{"role":"assistant","content":"ho"}')


def turn(*asked: Message, system: bytes | None = None, echo: Message | None = REPLY, reply: bytes = REPLY.raw) -> Turn:
    return Turn(id="1", system=system, asked=asked, reply=reply, echo=echo)


def test_the_size_of_a_turn_grows_with_every_part() -> None:
    least = turn(reply=b"", echo=None)
    larger = [
        turn(reply=b"x", echo=None),
        turn(reply=b""),
        turn(USER, reply=b"", echo=None),
        turn(USER, USER, reply=b"", echo=None),
        turn(Message("user", USER.raw + b" " * 9), reply=b"", echo=None),
        turn(reply=b"", echo=None, system=b"s" * 9),
    ]
    assert all(each.size > least.size for each in larger)
    assert larger[3].size > larger[2].size < larger[4].size


def test_many_small_messages_are_not_taken_for_nothing() -> None:
    """The objects around a message take more memory than a short text does."""
    assert turn(*[Message("user", b"1")] * 1000).size > 1000 * 200
