"""A scrape of a real process; and that dashboard and alerts ask for what there is."""

from __future__ import annotations

import asyncio
import json
import re
import sys
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import pytest
import requests
import yaml
from prometheus_client.metrics_core import Metric
from prometheus_client.parser import text_string_to_metric_families

from tests.acceptance.test_logs import call, chat, script
from tests.support.fakes import ScriptedUpstream, completion, error, free_port
from tests.support.process import ROOT, Proxy, run

GRAFANA = ROOT / "config" / "grafana"
DASHBOARD, ALERTS = GRAFANA / "dashboard.json", GRAFANA / "alerts.yaml"
TOKEN = "a-token"


class Administered(Proxy):
    """A proxy with an admin listener."""

    def __init__(self, base_url: str, folder: Path) -> None:
        self.admin = free_port()
        super().__init__(base_url, folder, {"admin": {"listen": f"127.0.0.1:{self.admin}", "token": TOKEN}})

    async def __aenter__(self) -> Administered:
        await self.start()
        return self

    def get(self, path: str = "/metrics", method: str = "GET", **headers: str) -> requests.Response:
        sent = {"Authorization": f"Bearer {TOKEN}", **headers}
        return requests.request(method, f"http://127.0.0.1:{self.admin}{path}", headers=sent, timeout=5)

    async def scrape(self) -> dict[str, Metric]:
        answer = await asyncio.to_thread(self.get)
        assert answer.status_code == 200 and answer.headers["Content-Type"].startswith("text/plain; version=")
        return {family.name: family for family in text_string_to_metric_families(answer.text)}


def value(families: dict[str, Metric], name: str, **labels: str) -> float | None:
    """The one sample of that name and these labels, among others."""
    found = [
        sample.value
        for family in families.values()
        for sample in family.samples
        if sample.name == name and labels.items() <= sample.labels.items()
    ]
    assert len(found) <= 1
    return found[0] if found else None


@asynccontextmanager
async def served(folder: Path) -> AsyncIterator[Administered]:
    async with ScriptedUpstream(script) as upstream, Administered(upstream.base_url, folder) as proxy:
        yield proxy


async def test_a_scrape_counts_requests_turns_and_tokens(tmp_path: Path) -> None:
    async with served(tmp_path) as proxy:
        for words in ("plain", "refuse", "again"):
            await call(proxy.port, "POST", "/v1/chat/completions", chat(words), session=True)
        await call(proxy.port, "GET", "/v1/models")
        await call(proxy.port, "GET", "/nowhere")
        found = await proxy.scrape()
    name = "session_proxy_"
    assert value(found, name + "turns_total", decision="append", outcome="complete") == 2
    assert value(found, name + "turns_total", decision="append", outcome="nothing") == 1
    assert value(found, name + "requests_total", route="recorded", status="2xx") == 2
    assert value(found, name + "requests_total", route="recorded", status="4xx") == 1
    assert value(found, name + "requests_total", route="passed", status="2xx") == 1
    assert value(found, name + "rejected_total", reason="not_found") == 1
    assert value(found, name + "tokens_total", kind="prompt") == 6
    for histogram in ("request", "first_byte", "overhead"):
        assert value(found, f"{name}{histogram}_seconds_count", route="recorded") == 3
        assert value(found, f"{name}{histogram}_seconds_bucket", route="recorded", le="+Inf") == 3
        assert (value(found, f"{name}{histogram}_seconds_sum", route="recorded") or 0) > 0
    assert value(found, name + "commit_seconds_count") == 2
    assert value(found, name + "sessions") == value(found, name + "cache_sessions") == 1
    assert (value(found, name + "database_bytes") or 0) > 4096 and value(found, name + "store_up") == 1
    assert value(found, name + "cache_limit_bytes") == 64 << 20 and (value(found, name + "cache_bytes") or 0) > 1024
    assert all([value(found, name + "cache_loads_total", result=result) for result in ("hit", "miss")])
    assert value(found, name + "in_flight") == value(found, name + "waiting") == value(found, name + "draining") == 0
    assert value(found, name + "build_info", python=".".join(map(str, sys.version_info[:3]))) == 1
    assert (value(found, "process_resident_memory_bytes") or 0) > 1 << 20


async def test_the_admin_listener_requires_its_token_and_serves_only_metrics(tmp_path: Path) -> None:
    def asked() -> list[tuple[int, str | None]]:
        answers = [
            proxy.get(Authorization=""),
            proxy.get(Authorization="Bearer wrong"),
            proxy.get("/nowhere", Authorization=TOKEN + "x"),
            proxy.get("/nowhere"),
            proxy.get(method="POST"),
            proxy.get(method="HEAD"),
            proxy.get("/metrics?x=1"),
        ]
        return [(answer.status_code, answer.headers.get("WWW-Authenticate")) for answer in answers]

    async with served(tmp_path) as proxy:
        found = await asyncio.to_thread(asked)
        assert found == [(401, "Bearer")] * 3 + [(404, None), (405, None), (200, None), (200, None)]


async def test_client_input_never_adds_a_metric_series(tmp_path: Path) -> None:
    async with served(tmp_path) as proxy:

        async def some(name: str) -> int:
            for path in (f"/{name}", f"/v1/{name}", f"/sessions/{name}", f"/v1/{name}/chat/completions"):
                await call(proxy.port, "POST", path, chat("x", model=name), x_session_id=name, api_key=name)
            families = await proxy.scrape()
            assert name not in str(families)
            return sum([len(family.samples) for family in families.values()])

        before = await some("first-name")
        for number in range(10):
            assert await some(f"other-name-{number}") == before


async def test_without_an_admin_listener_prometheus_client_is_not_loaded() -> None:
    code = "import sys, proxy.service.daemon; print([name for name in sys.modules if 'prometheus' in name])"
    process = await asyncio.create_subprocess_exec(sys.executable, "-c", code, stdout=asyncio.subprocess.PIPE, cwd=ROOT)
    said, _ = await process.communicate()
    assert said == b"[]\n"


async def test_an_admin_address_in_use_prints_one_sentence(tmp_path: Path) -> None:
    async with served(tmp_path) as proxy:
        other = tmp_path / "other"
        other.mkdir()
        config = ("--config", str(proxy.config), "--listen", f"127.0.0.1:{free_port()}")
        code, _, said = await run("serve", *config, folder=other)
    assert code == 1 and "Traceback" not in said
    assert said.splitlines()[-1].startswith(f"session-proxy: Cannot listen on 127.0.0.1:{proxy.admin}: address already")


# What is shipped


def expressions(where: Any) -> Iterator[str]:
    """Every PromQL expression in a dashboard or in rules."""
    if isinstance(where, dict):
        for key, inner in where.items():
            if key == "expr":
                yield inner
            elif key == "query" and isinstance(inner, str) and "(" in inner:
                yield re.sub(r"^label_values\((.*),\s*\w+\)$", r"\1", inner)
            else:
                yield from expressions(inner)
    elif isinstance(where, list):
        for inner in where:
            yield from expressions(inner)


SHIPPED = {
    "dashboard": list(expressions(json.loads(DASHBOARD.read_text()))),
    "alerts": list(expressions(yaml.safe_load(ALERTS.read_text()))),
}


async def known(folder: Path) -> dict[str, set[str]]:
    """The names that a scrape has, each with its labels, after everything has happened that makes one."""
    answers = [completion("1"), error(200, b"<html>")]
    async with ScriptedUpstream(answers) as upstream, Administered(upstream.base_url, folder) as proxy:
        for text in ("x", "y"):
            await call(proxy.port, "POST", "/v1/chat/completions", chat(text), session=True)
        await call(proxy.port, "GET", "/nowhere")
        families = await proxy.scrape()
    found: dict[str, set[str]] = {"up": {"job", "instance"}}
    for family in families.values():
        for sample in family.samples:
            found.setdefault(sample.name, {"job", "instance"}).update(sample.labels)
    return found


async def test_dashboard_and_alerts_use_existing_metrics(tmp_path: Path) -> None:
    names = await known(tmp_path)
    assert len(SHIPPED["dashboard"]) > 10 and len(SHIPPED["alerts"]) > 5
    for expression in SHIPPED["dashboard"] + SHIPPED["alerts"]:
        bare = re.sub(r'"[^"]*"', '""', expression)
        used = set(re.findall(r"\b(?:session_proxy_|process_)\w+|\bup\b", bare))
        assert used and used <= names.keys(), expression
        matched = re.findall(r"(\w+)\s*(?:=~|!~|!=|=)\s*\"\"", bare)
        grouped = re.findall(r"\bby\s*\(([^)]*)\)", bare)
        labels = {*matched, *[name.strip() for group in grouped for name in group.split(",")]}
        assert labels <= set().union(*[names[name] for name in used]), expression


async def test_the_metrics_page_names_exactly_the_metrics_there_are(tmp_path: Path) -> None:
    page = (ROOT / "docs" / "reference" / "metrics.md").read_text()
    told = set(re.findall(r"^\| `([a-z_]+)` \|", page, re.M))
    names = {re.sub(r"_(bucket|sum|count|created)$", "", name) for name in await known(tmp_path)}
    assert told == {name.removeprefix("session_proxy_") for name in names if name.startswith("session_proxy_")}


def test_rate_is_applied_to_counters_alone() -> None:
    for expression in SHIPPED["dashboard"] + SHIPPED["alerts"]:
        for name in re.findall(r"\bsession_proxy_\w+", expression):
            counts = name.endswith(("_total", "_bucket", "_sum", "_count"))
            assert bool(re.search(rf"(?:rate|increase)\({name}\b", expression)) == counts, expression


@pytest.mark.parametrize("expression", SHIPPED["dashboard"] + SHIPPED["alerts"])
def test_every_dashboard_expression_parses(expression: str) -> None:
    parser = pytest.importorskip("promql_parser", reason="no wheel of promql-parser for this platform")
    for name, span in (("$__rate_interval", "5m"), ("$__range", "1h"), ("$instance", ".*")):
        expression = expression.replace(name, span)
    parser.parse(expression)


def test_every_alert_has_a_remedy() -> None:
    rules = [rule for group in yaml.safe_load(ALERTS.read_text())["groups"] for rule in group["rules"]]
    for rule in rules:
        assert rule["annotations"].keys() == {"summary", "description"} and rule["labels"]["severity"]


def test_dashboard_panels_do_not_overlap() -> None:
    taken: set[tuple[int, int]] = set()
    board = json.loads(DASHBOARD.read_text())
    assert len({panel["id"] for panel in board["panels"]}) == len(board["panels"])
    for panel in board["panels"]:
        at = panel["gridPos"]
        here = {(at["x"] + x, at["y"] + y) for x in range(at["w"]) for y in range(at["h"])}
        assert not here & taken and at["x"] + at["w"] <= 24
        taken |= here
