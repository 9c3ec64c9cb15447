"""The words of the proxy as values: what follows from their fields."""

from __future__ import annotations

from proxy.core.model import History, Message, Session, SessionState, Turn, fresh

USER = Message("user", b'{"role":"user","content":"hi"}')
REPLY = Message("assistant", b'{"role":"assistant","content":"ho"}')


def turn(id: str, *, system: bytes | None = None, echo: Message | None = REPLY) -> Turn:
    return Turn(id=id, system=system, asked=(USER,), reply=REPLY.raw, echo=echo)


def test_a_turn_sends_what_was_asked_and_the_echo() -> None:
    assert turn("1").sent == (USER, REPLY)
    assert turn("1").joined == USER.raw + b"," + REPLY.raw


def test_a_turn_whose_reply_is_empty_is_not_sent_on() -> None:
    assert turn("1", echo=None).sent == ()
    history = History((turn("1"), turn("2", echo=None), turn("3")))
    assert history.count == 4
    assert history.joined == turn("1").joined + b"," + turn("3").joined


def test_the_system_block_in_force_is_the_newest() -> None:
    assert History().system is None
    assert History((turn("1", system=b"old"), turn("2", system=b"new"), turn("3"))).system == b"new"


def test_a_history_grows_by_turns_and_stays_what_it_was() -> None:
    history = History((turn("1"),))
    longer = history.plus(turn("2"))
    assert [each.id for each in longer.turns] == ["1", "2"]
    assert len(history.turns) == 1


def test_the_size_grows_with_every_part() -> None:
    sizes = [turn("1", echo=None).size, turn("1").size, turn("1", system=b"s" * 9).size]
    assert sizes == sorted(set(sizes))
    assert History((turn("1"), turn("2"))).size == 2 * turn("1").size
    assert History().size == 0


def test_a_fresh_session_has_no_history() -> None:
    assert fresh() == Session(SessionState.NEW, History())
    assert fresh(SessionState.EXPIRED).state == "expired"
