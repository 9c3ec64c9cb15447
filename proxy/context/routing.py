"""Maps a request's path to an upstream and its URL. Pure; no other module builds an upstream's URL.

Hosts come from the configuration alone; nothing in a request can name one.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import NamedTuple
from urllib.parse import unquote, urlsplit

from proxy.config.model import Upstream
from proxy.errors import BadRequest

CHAT = "/chat/completions"


class Target(NamedTuple):
    """Names the upstream and the URL that a request is forwarded to."""

    upstream: Upstream
    url: str
    is_chat: bool  # where a POST with a session ID is a recorded turn
    host: str  # the upstream's, with its port: where signatures hold, and what was learned of it
    tidy: str | None = None  # the URL of a recorded turn, where the client wrote a slash behind the path


def find(raw_target: str, method: str, upstreams: Iterable[Upstream]) -> Target | None:
    """Find the upstream for a request target as sent; return None where nothing is mounted.

    Raises BadRequest for a path with `..`, encoded or not: the upstream would resolve it, with the proxy's key.
    """
    if not raw_target.startswith("/"):
        raise BadRequest("The request target must be a path, such as /v1/chat/completions.")
    path, question, query = raw_target.partition("?")
    mounted = [(mount, upstream) for upstream in upstreams for mount in upstream.mount if _under(path, mount)]
    if not mounted:
        return None
    if any(segment in (".", "..") for segment in unquote(path).replace("\\", "/").split("/")):
        raise BadRequest("The path has a segment `.` or `..`. Send it without.")
    mount, upstream = max(mounted, key=lambda found: len(found[0]))
    rest = path[len(mount.rstrip("/")) :]
    if method == "POST" and not rest.strip("/"):  # clients exist that post to the base URL
        rest = CHAT
    host = urlsplit(upstream.base_url).netloc.lower()
    bare, end = rest.rstrip("/"), question + query
    is_chat = bare.endswith(CHAT)
    tidy = upstream.base_url + bare + end if is_chat and bare != rest else None
    return Target(upstream, upstream.base_url + rest + end, is_chat, host, tidy)


def _under(path: str, mount: str) -> bool:
    return mount == "/" or path == mount or path.startswith(mount + "/")
