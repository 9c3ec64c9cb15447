"""Summaries of a real model, over many cuts: what counts is that one is there, not how good it is."""

from __future__ import annotations

import asyncio
import json
import os
from pathlib import Path

import pytest

from bench import long
from bench.machine import CannotStart
from tests.support.process import Proxy

TURNS = 60
HEADING = "Summary of the earlier messages"
HISTORY = {"overflow": "summarize", "max_tokens": 900, "summary": {"max_tokens": 120}}


@pytest.mark.soak
@pytest.mark.skipif(not os.environ.get("SOAK"), reason="minutes: SOAK=1")
@pytest.mark.timeout(1200)
async def test_a_summary_stays_in_every_later_prompt(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    try:
        with long.model(4096) as model, long.tap(model) as (port, seen):
            settings = {
                "upstreams": [{"base_url": f"http://127.0.0.1:{port}/v1", "api_key": "ours"}],
                "history": HISTORY,
                "log": {"level": "info"},
            }
            async with Proxy("", tmp_path, settings) as proxy:
                statuses = []
                for n in range(TURNS):
                    asked = {"role": "user", "content": f"My friend number {n} lives in town {n * 37}. " * 3 + "Go on."}
                    body = json.dumps({"model": "m", "messages": [asked], "max_tokens": 48, "temperature": 0})
                    told = await asyncio.to_thread(long.post, proxy.port, "/v1/chat/completions", body.encode(), "long")
                    statuses.append(told[0])
                log = proxy.log
    except CannotStart as why:
        pytest.skip(str(why))
    sent = [json.loads(body)["messages"] for body in seen.bodies]
    summaries = [each for each in sent if each[0]["role"] == "system"]
    has = [HEADING in str(each[0]["content"]) for each in sent if each[0]["role"] != "system"]
    trace = "".join(["S" if each else "." for each in has])
    prompts = [
        usage["prompt_tokens"] for each, usage in zip(sent, seen.usages, strict=True) if each[0]["role"] != "system"
    ]
    with capsys.disabled():
        lines = [line for line in log.splitlines() if "summary" in line]
        print(f"\n{trace}\n{len(summaries)} summaries, prompts up to {max(prompts)} tokens, refused {seen.refused}")
        print("\n".join(lines[:6]))
    assert statuses == [200] * TURNS
    assert seen.refused == 0
    assert has == sorted(has) and sum(has) > TURNS // 2
    assert max(prompts) <= 900
    assert len(summaries) <= TURNS // 2  # a cut every third turn, at so small a limit
