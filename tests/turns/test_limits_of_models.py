"""A long memory that keeps its facts: what was told at the beginning is in what goes upstream at the end."""

from __future__ import annotations

import re
from itertools import pairwise

import pytest

from proxy.core.window.chain import most_of
from tests.support.fakes import Received, Reply, ScriptedUpstream, completion, error
from tests.support.serving import RunningProxy, Serve
from tests.support.talk import Json, ask, user
from tests.turns.test_summaries import OURS, PROMPT, asks_for_a_summary, idle

FACTS = 30
FILLER = " and so on" * 200  # 2 KB
FACT = re.compile(r"Fact (\d+) is \d+\.")


def tokens(request: Received) -> int:
    return len(request.body) // 4


class Scripted:
    """An upstream of so many tokens, which counts four bytes as one; its summaries are the facts that it is shown."""

    def __init__(self, limit: int) -> None:
        self.limit = limit
        self.turns: list[Received] = []
        self.summaries: list[Received] = []
        self.refused = 0

    def __call__(self, request: Received) -> Reply:
        used = tokens(request)
        if used > self.limit:
            self.refused += 1
            said = f"This model's maximum context length is {self.limit} tokens, your messages have {used} tokens."
            return error(400, {"error": {"message": said, "code": "context_length_exceeded"}})
        if asks_for_a_summary(request):
            self.summaries.append(request)
            facts = dict.fromkeys(found.group() for found in FACT.finditer(request.messages[1]["content"]))
            return completion(" ".join(facts) or "Nothing yet.")
        self.turns.append(request)
        return completion(f"answer{FILLER}", usage={"prompt_tokens": used, "completion_tokens": len(FILLER) // 4})


async def lived(proxy: RunningProxy, turns: int) -> None:
    """A session whose client tells all facts in the first tenth of it, and leaves a moment between two turns."""
    early = max(1, turns // 10)
    for n in range(turns):
        first, last = FACTS * n // early, FACTS * (n + 1) // early
        facts = " ".join([f"Fact {each} is {each * 7919}." for each in range(first, min(last, FACTS))])
        assert (await ask(proxy.port, [user(f"{n}: {facts}{FILLER}")])).status == 200
        await idle(proxy)


@pytest.mark.parametrize("known", [True, False], ids=["set", "learned"])
@pytest.mark.parametrize("limit", [8_000, 32_000, 64_000, 128_000])
async def test_summaries_carry_thirty_early_facts_to_the_end(serve: Serve, limit: int, known: bool) -> None:
    upstream_of = Scripted(limit)
    async with ScriptedUpstream(upstream_of) as upstream:
        settings: Json = {"overflow": "summarize", "summary": {"prompt": PROMPT}}
        settings |= {"max_tokens": limit} if known else {}
        proxy = await serve(upstream.base_url, upstream=OURS, history=settings)
        await lived(proxy, 3 * limit * 4 // (2 * len(FILLER)))
    last = upstream_of.turns[-1]
    kept = {int(found[1]) for found in FACT.finditer(last.body.decode())}
    assert len(kept) == FACTS
    assert upstream_of.refused <= (0 if known else 1)  # the error by which the limit is learned
    assert len(upstream_of.summaries) >= 2
    # Never an empty one, and from the first one on there is one in front of every turn.
    assert all(len(request.messages[1]["content"]) > 1000 for request in upstream_of.summaries)
    has = ["Summary of the earlier" in str(request.messages[0]["content"]) for request in upstream_of.turns]
    assert has == sorted(has)
    assert most_of(1024, limit) * 4 < limit


async def test_a_message_larger_than_the_context_is_summarized_in_parts(serve: Serve) -> None:
    upstream_of = Scripted(4000)
    async with ScriptedUpstream(upstream_of) as upstream:
        settings = {"overflow": "summarize", "max_tokens": 4000, "summary": {"prompt": PROMPT}}
        proxy = await serve(upstream.base_url, upstream=OURS, history=settings)
        # It comes in with a list that carries its history, and is what the first cut leaves out.
        facts = [f"Fact {n} is {n * 7919}.{FILLER}" for n in range(FACTS)]
        listed = [user(" ".join(facts)), {"role": "assistant", "content": "I see."}, user("Go on.")]
        upstream_of.limit = 1_000_000
        assert (await ask(proxy.port, listed)).status == 200
        upstream_of.limit = 4000
        await lived_on(proxy, 8)
    asked = upstream_of.summaries
    assert len(asked) >= 5 and all(tokens(request) <= 4000 for request in asked)
    assert len(set(FACT.findall(upstream_of.turns[-1].body.decode()))) == FACTS
    assert all(f"Fact {n} " in after.body.decode() for before, after in pairwise(asked) for n in shown(before))


def shown(request: Received) -> list[str]:
    return FACT.findall(request.body.decode())


async def lived_on(proxy: RunningProxy, turns: int) -> None:
    for n in range(turns):
        assert (await ask(proxy.port, [user(f"{n}: more")], headers=[("x-session-mode", "append")])).status == 200
        await idle(proxy)


async def carried(proxy: RunningProxy, upstream_of: Scripted) -> None:
    """A list that carries far more than the model takes comes in, each fact in a turn of its own."""
    limit, upstream_of.limit = upstream_of.limit, 1 << 30
    listed: list[Json] = []
    for n in range(FACTS):
        listed += [user(f"Fact {n} is {n * 7919}.{FILLER}"), {"role": "assistant", "content": "I see."}]
    assert (await ask(proxy.port, [*listed, user("Go on.")])).status == 200
    upstream_of.limit = limit


async def test_a_failed_chain_of_summaries_continues_where_it_stopped(serve: Serve) -> None:
    upstream_of, broken = Scripted(4000), [3, 4]

    def answer(request: Received) -> Reply:
        if asks_for_a_summary(request) and len(upstream_of.summaries) + 1 == broken[0]:
            broken.pop(0)
            broken.append(0)
            return error(500, {"error": {"message": "no"}})
        return upstream_of(request)

    async with ScriptedUpstream(answer) as upstream:
        settings = {"overflow": "summarize", "max_tokens": 4000, "summary": {"prompt": PROMPT}}
        proxy = await serve(upstream.base_url, upstream=OURS, history=settings)
        await carried(proxy, upstream_of)
        await lived_on(proxy, 12)
    assert broken == [0, 0]
    assert len(set(FACT.findall(upstream_of.turns[-1].body.decode()))) == FACTS
    # None is told twice in its own words: what stands behind the summary so far is new.
    own = [fact for request in upstream_of.summaries for fact in re.findall(r"user: Fact (\d+)", request.body.decode())]
    assert sorted(map(int, own)) == list(range(FACTS))


async def test_a_part_too_long_for_the_summary_model_is_halved(serve: Serve) -> None:
    """No limit is known, and the model that summarizes takes a quarter of what is then sent."""
    upstream_of, small = Scripted(60_000), Scripted(6000)

    def answer(request: Received) -> Reply:
        return small(request) if request.json["model"] == "small" else upstream_of(request)

    async with ScriptedUpstream(answer) as upstream:
        settings = {"overflow": "summarize", "max_messages": 20, "summary": {"prompt": PROMPT, "model": "small"}}
        proxy = await serve(upstream.base_url, upstream=OURS, history=settings)
        await carried(proxy, upstream_of)
        await lived_on(proxy, 6)
    assert small.refused == 1  # the error by which its limit is learned
    assert len(set(FACT.findall(upstream_of.turns[-1].body.decode()))) == FACTS
