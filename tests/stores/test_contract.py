"""What every store promises, on each of them."""

from __future__ import annotations

import asyncio

import pytest

from proxy.core.history import History, Session
from proxy.core.model import (
    CARRIES,
    SIDE,
    TOOLS,
    Answer,
    Message,
    ModelKey,
    SessionKey,
    TrimPoint,
    Turn,
    TurnState,
)
from tests.stores.conftest import DAY, TTL, A, B, Shelf, answer, session, turn, turns
from tests.support.touching import (
    EXPIRED,
    NEW,
    touch,
)


async def test_a_session_nobody_has_written_to_is_new(shelf: Shelf) -> None:
    assert await shelf.store.load(A, 0) == Session(NEW, History())
    assert await shelf.store.load(A, 0) == Session(NEW, History())


async def test_turns_come_back_in_the_order_they_were_appended_in(shelf: Shelf) -> None:
    line = turns(*[str(n) for n in range(20)])
    for n, one in enumerate(line):
        await shelf.store.append(A, [one], n)
        if n % 3 == 0:
            assert await shelf.store.load(A, n) == session(*line[: n + 1])
    await shelf.reopen()
    assert await shelf.store.load(A, 20) == session(*line)


async def test_turns_that_are_appended_at_once_follow_each_other(shelf: Shelf) -> None:
    line = turns("1", "2", "3", "4", "5")
    await shelf.store.append(A, line[:3], 0)
    assert await shelf.store.load(A, 0) == session(*line[:3])
    await shelf.store.append(A, line[3:], 0)
    await shelf.reopen()
    loaded = await shelf.store.load(A, 0)
    assert loaded == session(*line)
    assert [entry.turn.id for entry in loaded.history.path] == [one.id for one in line for _ in "ua"]


async def test_turns_branch_and_the_tip_is_the_latest(shelf: Shelf) -> None:
    one, two = turns("1", "2")
    other = turn("other", one, layout=((0, 1), 1), system=b'{"role":"system","content":"o"}')
    root = turn("root")
    tips = []
    for added in (one, two, other, root, turn("more", two)):
        await shelf.store.append(A, [added], 0)
        tips.append((await shelf.store.load(A, 0)).history)
    await shelf.reopen()
    assert (await shelf.store.load(A, 0)).history == tips[-1]
    assert [history.tip for history in tips] == [f"turn_{id}" for id in ("1", "2", "other", "root", "more")]
    assert [len(history.path) for history in tips] == [2, 4, 3, 2, 6]
    assert tips[2].system == other.system and tips[-1].system is None


async def test_turns_that_are_dropped_are_gone_and_no_others(shelf: Shelf) -> None:
    first, left, right = turn("1"), turn("left", turn("1")), turn("right", turn("1"))
    for key in (A, B):
        await shelf.store.append(key, [first], 0)
        await shelf.store.append(key, [left], 0)
        await shelf.store.load(key, 0)
    await shelf.store.append(A, [right], 0, ["turn_left", "turn_nobody"])
    for _ in range(2):
        assert await shelf.store.load(A, 0) == session(first, right)
        assert await shelf.store.load(B, 0) == session(first, left)
        await shelf.reopen()
    await shelf.store.append(A, [turn("left", right)], 0)  # the name is free again
    assert await shelf.store.load(A, 0) == session(first, right, turn("left", right))


async def test_turns_go_on_in_order_after_a_restart(shelf: Shelf) -> None:
    one, two = turns("1", "2")
    await shelf.store.append(A, [one], 0)
    await shelf.reopen()
    await shelf.store.append(A, [two], 0)
    await shelf.reopen()
    assert await shelf.store.load(A, 0) == session(one, two)


ODD = {
    "every field": turn(
        system=b'{"role":"system","content":"be brief"},{"role":"developer","content":"x"}',
        model="m",
        finish_reason="stop",
        usage=b'{"total_tokens": 1e400}',
        started=1,
        ended=2,
        state=TurnState.INTERRUPTED,
        rendering_key="host gpt echo",
        request=bytes(range(32)),
        resends=True,
        idempotency_key="k ü 😀'; --",
        client=bytes(range(16)),
        traits=CARRIES | TOOLS | 1 << 40,
    ),
    "a system block that is none": turn(system=b""),
    "marks": turn(
        asked=(Message("user", b"1", bytes(16)), Message("user", b"2", bytes(range(16)))),
        rendered=Message("assistant", b"3", b"\xff" * 16),
    ),
    "marks without a reply": turn(asked=(Message("user", b"1", b"m" * 16),), reply=b"null", rendered=None),
    "a mark of the reply alone": turn(asked=(), rendered=Message("assistant", b"3", b"m" * 16)),
    "an adopted turn": turn(state=TurnState.ADOPTED),
    "a layout of spans and numbers": turn(layout=((0, 2), 1, (5, 6), 3)),
    "a layout of nothing": turn(layout=()),
    "roles": turn(
        asked=tuple(
            Message(role, b'{"role":%b}' % raw)
            for role, raw in [("", b"7"), ("tool", b'"tool"'), ('a"\n\0', b'"a\\"\\n\\u0000"'), ("ü", '"ü"'.encode())]
        )
    ),
    "lone surrogates": turn(
        asked=(
            Message("user", b'{"role":"user","content":"\\ud83d, ] }"}'),
            Message("\udcff", b'{"role":"\\udcff","content":"[1, 2"}'),
        ),
        reply=b'{"content":"\\ud800"}',
        rendered=Message("assistant", b'{"role":"assistant","content":"\\ud800"}'),
    ),
    "spaces, numbers, twins": turn(asked=(Message("user", b'{ "role" : "user",\n"n":1.0e+2,"k":1, "k":2 }'),)),
    "a reply that is not sent on": turn(reply=b"null", rendered=None),
    "nothing asked": turn(asked=()),
    "no UTF-8 in the reply": turn(reply=b"\xff\x00\xfe"),
    "a large body": turn(asked=(Message("user", b'{"role":"user","content":"' + b"x" * 5_000_000 + b'"}'),)),
    "deep": turn(asked=(Message("user", b'{"role":"user","content":' + b"[" * 500 + b"]" * 500 + b"}"),)),
}


@pytest.mark.parametrize("odd", ODD.values(), ids=ODD)
async def test_nothing_changes_in_the_store(shelf: Shelf, odd: Turn) -> None:
    await shelf.store.append(A, [odd], 0)
    await shelf.reopen()
    assert await shelf.store.load(A, 0) == session(odd)


async def test_names_that_are_not_unicode_fail_nobody(shelf: Shelf) -> None:
    odd = turn("odd", model="m\ud800", finish_reason="\udfff", idempotency_key="\udc80")
    given = Answer(200, "text/plain; charset=\udcff", b"a")
    await asyncio.gather(shelf.store.append(A, [odd], 0, answer=given), shelf.store.append(B, [turn("b")], 0))
    await shelf.reopen()
    line = (await shelf.store.load(A, 0)).history.path
    assert [entry.message for entry in line] == [*odd.asked, odd.rendered]
    assert await shelf.store.load(B, 0) == session(turn("b"))


async def test_the_newest_system_prompt_is_remembered(shelf: Shelf) -> None:
    blocks: list[tuple[bytes | None, bytes | None]] = [
        (b"a", b"a"),
        (None, b"a"),
        (b"", None),
        (b"b", b"b"),
        (None, b"b"),
    ]
    last = None
    for n, (system, wanted) in enumerate(blocks):
        last = turn(str(n), last, system=system)
        await shelf.store.append(A, [last], 0)
        assert (await shelf.store.load(A, 0)).history.system == wanted
        await shelf.reopen()
        assert (await shelf.store.load(A, 0)).history.system == wanted


async def test_equal_ids_of_two_tenants_are_two_sessions(shelf: Shelf) -> None:
    keys = [
        A,
        B,
        SessionKey(b"", "tenant as"),
        SessionKey(A.tenant, "S"),
        SessionKey(b"\xff\0", "s"),
        SessionKey(b"", ""),
    ]
    await shelf.store.append(A, [turn("secret")], 0)
    for key in keys[1:]:
        assert await shelf.store.load(key, 0) == Session(NEW, History())
    for n, key in enumerate(keys[1:]):
        await shelf.store.append(key, [turn(str(n))], 0)
    await shelf.reopen()
    assert await shelf.store.load(A, 0) == session(turn("secret"))
    for n, key in enumerate(keys[1:]):
        assert await shelf.store.load(key, 0) == session(turn(str(n)))


async def test_sessions_written_at_once_do_not_mix(shelf: Shelf) -> None:
    keys = [SessionKey(b"t", str(n)) for n in range(50)]
    lines = {key: turns(*[part + key.id for part in "abc"]) for key in keys}
    for n in range(3):
        await asyncio.gather(*[shelf.store.append(key, [line[n]], 0) for key, line in lines.items()])
    await shelf.reopen()
    for key, line in lines.items():
        assert await shelf.store.load(key, 0) == session(*line)


async def test_a_store_tells_how_much_there_is(shelf: Shelf) -> None:
    assert (await shelf.store.stats(0)).sessions == 0
    await shelf.store.append(A, [turn()], 0)
    await shelf.store.append(B, [turn()], TTL // 2)
    there = [await shelf.store.stats(now) for now in (TTL, TTL + 1, 2 * TTL)]
    assert [standing.sessions for standing in there] == [2, 1, 0]
    assert (there[0].size > 4096) == (shelf.kind != "memory")


async def test_what_upstreams_refuse_is_learned(shelf: Shelf) -> None:
    assert shelf.store.learned.refusals.get("a") is None
    for upstream, member in [("a", "reasoning"), ("a", "audio"), ("b", "refusal"), ("a", "audio")]:
        await shelf.store.learn(upstream, member)
    wanted = {"a": {"reasoning", "audio"}, "b": {"refusal"}}
    assert shelf.store.learned.refusals == wanted
    await shelf.reopen()
    assert shelf.store.learned.refusals == wanted
    await shelf.store.learn("b", "audio")
    await shelf.reopen()
    assert shelf.store.learned.refusals == {**wanted, "b": {"refusal", "audio"}}


async def test_what_models_take_is_learned_per_tenant_and_forgotten_in_a_day(shelf: Shelf) -> None:
    mine, theirs, other = ModelKey(b"t", "host", "m"), ModelKey(b"u", "host", "m"), ModelKey(b"t", "host", "n")
    assert shelf.store.learned.limit(mine, 0) is None
    await shelf.store.learn_limit(mine, 4096, 0)
    await shelf.store.learn_limit(other, 512, 5)
    await shelf.store.learn_limit(mine, 2048, 10)
    for _ in range(2):
        assert [shelf.store.learned.limit(key, DAY) for key in (mine, theirs, other)] == [2048, None, 512]
        assert shelf.store.learned.limit(mine, DAY + 11) is None
        await shelf.reopen()
    await shelf.store.learn_limit(theirs, 8192, DAY + 11)
    for _ in range(2):
        assert [shelf.store.learned.limit(key, DAY + 11) for key in (mine, theirs, other)] == [None, 8192, None]
        await shelf.reopen()
    assert shelf.store.learned.limit(theirs, 0) == 8192


async def test_a_trim_point_is_stored_with_its_turn(shelf: Shelf) -> None:
    summary = b'{"role":"user","content":"in short"}'
    one = turn("1")
    two = turn("2", one, trim_point=TrimPoint(2), trimmed_for="700 h m")
    line = [one, two, turn("3", two, trim_point=TrimPoint(4, summary)), turn("4", turn("3"))]
    line.append(turn("5", line[-1], trim_point=TrimPoint(6, summary, 4)))
    for each in line:
        await shelf.store.append(A, [each], 0)
        await shelf.store.load(A, 0)
    await shelf.store.append(A, [turn("other", line[1])], 0)
    for _ in range(2):
        history = (await shelf.store.load(A, 0)).history
        assert history.turns[:5] == tuple(line)
        trim_points = [history.trim_point_of(f"turn_{name}") for name in ("1", "2", "3", "4", "5", "other")]
        assert trim_points == [
            TrimPoint(),
            TrimPoint(2),
            TrimPoint(4, summary),
            TrimPoint(4, summary),
            TrimPoint(6, summary, 4),
            TrimPoint(2),
        ]
        assert history.trim_point == TrimPoint(2)
        await shelf.reopen()


# What clients were given ----------------------------------------------------------------------


async def given(shelf: Shelf, key: SessionKey, *texts: str) -> list[Answer | None]:
    return [await shelf.store.answer(key, f"turn_{text}") for text in texts]


async def test_the_answer_of_the_last_turn_is_kept_until_the_next(shelf: Shelf) -> None:
    one, two, three = turns("1", "2", "3")
    assert await given(shelf, A, "1") == [None]
    for added, new in [(one, answer("a")), (two, answer("b")), (three, None)]:
        await shelf.store.append(A, [added], 0, answer=new)
        wanted = [new if added.id == f"turn_{n}" else None for n in (1, 2, 3)]
        assert await given(shelf, A, "1", "2", "3") == wanted
        await shelf.reopen()
        assert await given(shelf, A, "1", "2", "3") == wanted


async def test_an_answer_of_a_turn_with_an_idempotency_key_is_kept_for_good(shelf: Shelf) -> None:
    last = None
    for n in range(6):
        last = turn(str(n), last, idempotency_key=f"key {n}" if n in (0, 3) else None)
        await shelf.store.append(A, [last], 0, answer=answer(str(n)))
    for _ in range(2):
        assert await given(shelf, A, *"012345") == [answer("0"), None, None, answer("3"), None, answer("5")]
        await shelf.reopen()


async def test_a_side_request_takes_neither_the_tip_nor_the_last_answer(shelf: Shelf) -> None:
    one = turn("1", system=b'{"role":"system"}')
    side = turn("side", traits=SIDE, system=b"", client=b"software")
    await shelf.store.append(A, [side], 0, answer=answer("side"))
    assert (await shelf.store.load(A, 0)).history == History((side,), None)
    await shelf.store.append(A, [one], 0, answer=answer("1"))
    again = turn("again", traits=SIDE, client=b"software", idempotency_key="k")
    await shelf.store.append(A, [again], 0, answer=answer("again"))
    for _ in range(2):
        assert (await shelf.store.load(A, 0)).history == History((side, one, again), one.id)
        assert await given(shelf, A, "side", "1", "again") == [None, answer("1"), answer("again")]
        await shelf.reopen()


async def test_of_turns_that_are_appended_at_once_the_last_has_the_answer(shelf: Shelf) -> None:
    await shelf.store.append(A, [turn("1"), turn("2", turn("1"), idempotency_key="k")], 0, answer=answer())
    assert await given(shelf, A, "1", "2") == [None, answer()]


@pytest.mark.parametrize(
    "odd",
    [
        Answer(200, None, b""),
        Answer(299, "", b"\xff\x00\xfe"),
        Answer(200, "application/json; charset=utf-8", b'{"a": "\\ud800"}'),
        Answer(200, "text/event-stream", b"data: x\r\n" * 500_000),
    ],
    ids=["nothing", "no text", "JSON", "a large one"],
)
@pytest.mark.parametrize("key", [None, "k"])
async def test_an_answer_comes_back_as_it_was(shelf: Shelf, odd: Answer, key: str | None) -> None:
    await shelf.store.append(A, [turn(idempotency_key=key)], 0, answer=odd)
    await shelf.reopen()
    assert await given(shelf, A, "hello") == [odd]


async def test_answers_of_equal_names_stay_apart(shelf: Shelf) -> None:
    keys = [A, B, SessionKey(A.tenant, "t"), SessionKey(b"", "")]
    one = turn("1", idempotency_key="k")
    for key in keys[:-1]:
        assert await given(shelf, key, "1") == [None]
        await shelf.store.append(key, [one], 0, answer=answer(repr(key)))
    await shelf.reopen()
    assert [await given(shelf, key, "1") for key in keys] == [*[[answer(repr(key))] for key in keys[:-1]], [None]]


async def test_the_answer_of_a_turn_that_is_dropped_is_gone_and_no_other(shelf: Shelf) -> None:
    first, left = turn("1", idempotency_key="1"), turn("left", turn("1"), idempotency_key="l")
    for key in (A, B):
        await shelf.store.append(key, [first], 0, answer=answer("1"))
        await shelf.store.append(key, [left], 0, answer=answer("left"))
    await shelf.store.append(A, [turn("right", first)], 0, ["turn_left"], answer("right"))
    for _ in range(2):
        assert await given(shelf, A, "1", "left", "right") == [answer("1"), None, answer("right")]
        assert await given(shelf, B, "1", "left", "right") == [answer("1"), answer("left"), None]
        await shelf.reopen()
    await shelf.store.append(A, [turn("left", first), turn("more", first)], 0)  # the name is free again
    assert await given(shelf, A, "left", "right", "more") == [None, None, None]


@pytest.mark.parametrize("how", ["load", "sweep"])
async def test_an_expired_session_keeps_no_answer(shelf: Shelf, how: str) -> None:
    line = [turn("1", idempotency_key="k"), turn("2", turn("1"))]
    for key in (A, B):
        for one in line:
            await shelf.store.append(key, [one], 0 if key is A else 1, answer=answer(one.id))
    await (shelf.store.load(A, TTL + 1) if how == "load" else shelf.store.sweep(TTL + 1, set(), 10))
    for _ in range(2):
        assert await given(shelf, A, "1", "2") == [None, None]
        assert await given(shelf, B, "1", "2") == [answer("turn_1"), answer("turn_2")]
        await shelf.reopen()
    await shelf.store.append(A, line, TTL + 1)  # of the same names
    assert await given(shelf, A, "1", "2") == [None, None]


# Deletion -------------------------------------------------------------------------------------


async def test_a_deleted_session_is_new_and_the_others_are_untouched(shelf: Shelf) -> None:
    keys = [A, B, SessionKey(A.tenant, "t")]
    line = [turn("1", idempotency_key="k"), turn("2", turn("1"))]
    for key in keys:
        for one in line:
            await shelf.store.load(key, 0)
            await shelf.store.append(key, [one], 0, answer=answer(one.id))
    await shelf.store.delete(A)
    for _ in range(2):
        assert await shelf.store.load(A, 0) == Session(NEW, History())
        assert await given(shelf, A, "1", "2") == [None, None]
        for key in keys[1:]:
            assert await shelf.store.load(key, 0) == session(*line)
            assert await given(shelf, key, "1", "2") == [answer("turn_1"), answer("turn_2")]
        await shelf.reopen()
    await shelf.store.append(A, [turn("1")], 0)  # the name is free again
    assert await shelf.store.load(A, 0) == session(turn("1"))
    assert await given(shelf, A, "1") == [None]


async def test_there_may_be_nothing_to_delete(shelf: Shelf) -> None:
    await shelf.store.append(B, [turn()], 0)
    for _ in range(2):
        await shelf.store.delete(A)
    assert await shelf.store.load(A, 0) == Session(NEW, History())
    assert await shelf.store.load(B, 0) == session(turn())


async def test_a_deleted_session_is_not_even_known_as_expired(shelf: Shelf) -> None:
    await shelf.store.append(A, [turn()], 0)
    assert (await shelf.store.load(A, TTL + 1)).state is EXPIRED
    await shelf.store.delete(A)
    await touch(shelf, A, TTL + 1)
    assert await shelf.store.sweep(9 * TTL, set(), 10) == 0
    assert (await shelf.store.load(A, TTL + 1)).state is NEW
