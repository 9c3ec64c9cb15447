"""Writes the text that `serve` prints for a person: requests to paste into another shell. Pure."""

from __future__ import annotations

import ipaddress
from shlex import quote
from urllib.parse import urlsplit

from proxy.config.model import Config, address

_CALL = """\
{curl}/chat/completions -H 'Content-Type: application/json' {headers} \
-d '{{"model": {model}, "messages": [{{"role": "user", "content": "{text}"}}]}}'
"""
_END = "The second request sends only its question. Without the {header} header it cannot be answered.\n"
_TEXTS = ("My name is Alice", "What is my name?")
# The first name in a list of models, by what every machine has.
_FIRST_MODEL = """$({curl}/models{headers} | tr ',' '\\n' | sed -n 's/.*"id": *"\\([^"]*\\)".*/\\1/p' | head -n 1)"""
_KNOWN_MODELS = {"api.openai.com": "gpt-4o-mini"}  # where the first of the list need not be one that chats
_KEYS = {"api.openai.com": "OPENAI_API_KEY"}


def greeting(config: Config, listen: str, with_demo: bool) -> str:
    """Write where the proxy listens, and two requests that show the memory."""
    origin, curl = _reached(listen, config.tls.certificate is not None)
    upstream, name = config.upstreams[0], config.sessions.headers[0]
    curl += quote(mount) if (mount := upstream.mount[0].rstrip("/")) else ""
    where = f"Listening on {origin}"
    headers = f"-H '{name}: try-1'"
    if with_demo:
        return _said(f"{where}. Try in another shell:", curl, headers, '"demo"', name)
    where += f", in front of {upstream.base_url}."
    host, credential = urlsplit(upstream.base_url).hostname or "", ""
    if not (upstream.api_key and config.lends_key):
        variable = "CLIENT_KEY" if upstream.api_key else _KEYS.get(host, "UPSTREAM_API_KEY")
        whose = "a client's key" if upstream.api_key else "your key for that upstream"
        credential = f' -H "Authorization: Bearer ${variable}"'
        where += f"\nTry in another shell, where {variable} holds {whose} (export {variable}=...)"
    else:
        where += " Try in another shell"
    model = _KNOWN_MODELS.get(host) or _FIRST_MODEL.format(curl=curl, headers=credential)
    where += f':\n\nexport MODEL="{model}"'
    return _said(where, curl, headers + credential, """"'"$MODEL"'\"""", name)


def _said(where: str, curl: str, headers: str, model: str, name: str) -> str:
    calls = [_CALL.format(curl=curl, headers=headers, model=model, text=text) for text in _TEXTS]
    return "\n".join([f"{where}\n", *calls, _END.format(header=name)])


def _reached(listen: str, secure: bool) -> tuple[str, str]:
    """Return the listener's URL, and the beginning of a curl command that reaches it from this machine."""
    place = address(listen)
    if isinstance(place, str):
        return listen, f"curl -s --unix-socket {quote(place)} http://localhost"
    host, port = place
    try:
        found = ipaddress.ip_address(host)
        if found.is_unspecified:
            host = "127.0.0.1" if found.version == 4 else "::1"
    except ValueError:
        pass  # a name
    origin = f"http{'s' if secure else ''}://{f'[{host}]' if ':' in host else host}:{port}"
    return origin, f"curl -s {origin}"
