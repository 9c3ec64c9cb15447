"""Decides which tenant and session a request belongs to, and which credential goes upstream.

No other module holds these rules, and no session is loaded without them.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence

from proxy.config.model import Config, Upstream
from proxy.core import headers
from proxy.errors import ConflictingSessionId, InvalidApiKey


def tenant(config: Config, sent: headers.Fields, secret: bytes) -> bytes:
    """Derive the opaque tenant of a request from its headers, by the configured rule."""
    credential, rule = headers.credential(sent), config.tenant_rule
    value = None if isinstance(rule, str) else sent.get(rule["header"])
    if config.clients and (name := headers.client_name(credential, _clients(config))):
        # A front is one client, and says by the header for which of its users it asks.
        whose = headers.tenant("client", name, secret)
        return whose if value is None else headers.tenant(f"client {whose.hex()}", value, secret)
    if rule == "one":
        return headers.tenant("one", None, secret)
    if rule == "credential":
        return headers.tenant("credential", credential, secret)
    return headers.tenant("header", value, secret)


def session_id(config: Config, sent: headers.Fields) -> tuple[str | None, bool]:
    """Return a request's session ID, or None, and whether it was preferred to the ID of another header. Raises
    InvalidSessionId and ConflictingSessionId."""
    names = config.sessions.headers
    try:
        return headers.session_id(sent, names), False
    except ConflictingSessionId as conflict:
        chosen = headers.preferred_id(sent.items(), names) if config.tenant_rule == "credential" else None
        if chosen is None:
            raise
        # Clients exist that always send an ID of their own. Only who can reach no sessions but the caller's own may
        # overrule it: elsewhere a front proxy says by the header whose session it is.
        if headers.credential(sent) is None:
            raise ConflictingSessionId(f"{conflict.message} With an API key of your own, sessionId wins.") from None
        return chosen, True


def admit(config: Config, upstream: Upstream, sent: headers.Fields) -> None:
    """Raise InvalidApiKey if the proxy would lend its key to a caller who is no client."""
    if upstream.api_key is None or not config.clients:
        return
    if headers.client_name(headers.credential(sent), _clients(config)) is None:
        raise InvalidApiKey("Unknown API key. Send one that the proxy's operator gave you.")


def with_our_key(upstream: Upstream, pairs: headers.Pairs) -> headers.Pairs:
    """Replace the caller's credential by the upstream's configured key, if it has one."""
    if upstream.api_key is None:
        return pairs
    kept = [(name, value) for name, value in pairs if name.lower() not in headers.CREDENTIALS]
    return [*kept, ("Authorization", f"Bearer {upstream.api_key.get_secret_value()}")]


def _clients(config: Config) -> Sequence[tuple[str, Iterable[str]]]:
    return [(client.name, client.key_hashes) for client in config.clients]
