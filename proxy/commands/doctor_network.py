"""Checks the network for `doctor`: whether upstreams answer, and which headers a front proxy forwards."""

from __future__ import annotations

import secrets
from collections.abc import AsyncIterator, Sequence
from typing import Any

import aiohttp

from proxy.commands.finding import Finding
from proxy.config.model import Config, Upstream

TIMEOUT = aiohttp.ClientTimeout(total=15)
# Nothing to answer: where the header is lost the upstream gets it, and refuses it for free.
_PROBE = {"model": "session-proxy-doctor", "messages": [], "max_tokens": 1}


async def upstreams(config: Config) -> AsyncIterator[Finding]:
    """Check that each upstream answers a request for its list of models, with the configured key if there is one."""
    async with aiohttp.ClientSession(timeout=TIMEOUT) as client:
        for upstream in config.upstreams:
            yield await _models(client, upstream)


async def _models(client: aiohttp.ClientSession, upstream: Upstream) -> Finding:
    url, key = f"{upstream.base_url}/models", upstream.api_key
    sent = {"Authorization": f"Bearer {key.get_secret_value()}"} if key else {}
    try:
        async with client.get(url, headers=sent, allow_redirects=False) as answer:
            status, said = answer.status, await _json(answer)
    except (aiohttp.ClientError, TimeoutError, OSError) as error:
        return Finding("fail", f"upstream: {url} cannot be reached ({_reason(error)}); check base_url")
    if status == 200:
        models = said.get("data")
        count = f"{len(models)} models" if isinstance(models, list) else "something other than a list of models"
        return Finding("ok" if isinstance(models, list) else "warn", f"upstream: {url} answers with {count}")
    if status in (401, 403):
        if key:
            return Finding("fail", f"upstream: {url} refuses the configured key ({status}); check api_key")
        return Finding("ok", f"upstream: {url} answers; it requires a caller's key ({status})")
    return Finding("warn", f"upstream: {url} answers with {status}; check base_url")


async def through(url: str, names: Sequence[str], key: str | None) -> AsyncIterator[Finding]:
    """Check which session headers reach the proxy through `url`, the clients' base URL."""
    names = list({name.lower(): name for name in names}.values())
    seen: dict[str, Any] = {}
    async with aiohttp.ClientSession(timeout=TIMEOUT) as client:
        for name in names:
            seen[name] = await _probe(client, url, name, key)
    arrived = [name for name in names if seen[name] is True]
    if not arrived:
        yield Finding("fail", f"front: no session header arrives through {url} ({seen[names[0]]})")
        return
    for name in names:
        if name in arrived:
            yield Finding("ok", f"front: {name} arrives")
        elif "_" in name:
            yield Finding(
                "warn",
                f"front: {name} does not arrive: front proxies drop names with an underscore (nginx:"
                f" underscores_in_headers on); clients should send {arrived[0]}",
            )
        else:
            yield Finding("fail", f"front: {name} does not arrive ({seen[name]}); let the front proxy forward it")


async def _probe(client: aiohttp.ClientSession, url: str, name: str, key: str | None) -> bool | str:
    """Send a dry run with one session header. Return True if the proxy saw it, else what came instead."""
    sent = {name: f"doctor-{secrets.token_hex(8)}", "x-session-dry-run": "yes"}
    if key:
        sent["Authorization"] = f"Bearer {key}"
    try:
        target = f"{url.rstrip('/')}/chat/completions"
        async with client.post(target, json=_PROBE, headers=sent, allow_redirects=False) as answer:
            said = await _json(answer)
            if "x-session-state" in answer.headers or {"decision", "injected"} <= said.keys():
                return True
            error = said.get("error")
            if isinstance(error, dict) and error.get("code") == "invalid_api_key":
                return f"the answer is {answer.status}: name the variable that holds a client's key with --key"
            return f"the answer is {answer.status}: is this the base URL that clients have, and the proxy behind it?"
    except (aiohttp.ClientError, TimeoutError, OSError) as error:
        return f"it cannot be reached: {_reason(error)}"


async def _json(answer: aiohttp.ClientResponse) -> dict[str, Any]:
    try:
        said = await answer.json(content_type=None)
    except ValueError:
        return {}
    return said if isinstance(said, dict) else {}


def _reason(error: BaseException) -> str:
    return "no answer in time" if isinstance(error, TimeoutError) else str(error) or type(error).__name__
