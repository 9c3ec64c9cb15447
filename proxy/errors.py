"""Defines the errors of the proxy: one class per cause, with its status, its code and its retry advice.

Code raises them where the cause is; `server/app.py` alone turns them into HTTP answers. Imports nothing.
"""

from __future__ import annotations


class ProxyError(Exception):
    """An error that the caller gets as an answer, in OpenAI's error shape.

    `status` is the HTTP status and `code` the machine-readable name of the error. `retry_after` is a delay in
    seconds, sent as `delay`. `should_retry` tells the official SDKs whether to retry; with None they retry 408, 409,
    429 and 5xx on their own.
    """

    status = 500
    code = "internal_error"
    type = "server_error"
    should_retry: bool | None = None
    retry_after: float | None = None

    def __init__(self, message: str, *, param: str | None = None) -> None:
        super().__init__(message)
        self.message = message
        self.param = param

    @property
    def delay(self) -> int | None:
        """Return `retry_after` in whole seconds from 1 to 60: at 0 openai-node retries at once, above 60 it ignores the
        header, and above 120 openai-python gives up."""
        if self.retry_after is None:
            return None
        kept = min(60.0, max(1.0, self.retry_after))
        return int(kept) + (kept > int(kept))

    def body(self) -> dict[str, object]:
        return {
            "error": {
                "message": self.message,
                "type": self.type,
                "param": self.param,
                "code": self.code,
            }
        }


class ConfigError(Exception):
    """The configuration is invalid. Holds one line per problem, each with its position in the file."""

    def __init__(self, problems: list[str]) -> None:
        super().__init__("\n".join(problems))
        self.problems = problems


class BadRequest(ProxyError):
    status, code, type = 400, "invalid_request", "invalid_request_error"


class InvalidSessionId(BadRequest):
    code = "invalid_session_id"


class ConflictingSessionId(BadRequest):
    code = "conflicting_session_id"


class InvalidApiKey(BadRequest):
    status, code = 401, "invalid_api_key"


class NotFound(BadRequest):
    status, code = 404, "not_found"


class SessionNotFound(NotFound):
    code = "session_not_found"


class TurnNotFound(NotFound):
    code = "turn_not_found"


class MethodNotAllowed(BadRequest):
    status, code = 405, "method_not_allowed"


class RequestTimeout(BadRequest):
    status = 408


class RequestTooLarge(BadRequest):
    status, code, should_retry = 413, "request_too_large", False


class ContextTooLong(BadRequest):
    """The request exceeds a limit of `history` once the history is injected. Uses the code that clients know."""

    code, should_retry = "context_length_exceeded", False


class UnsupportedEncoding(BadRequest):
    status, code = 415, "unsupported_encoding"


class SessionBusy(ProxyError):
    status, code, type, retry_after = 409, "session_busy", "conflict_error", 1.0


class SessionQueueFull(ProxyError):
    status, code, type, retry_after = 429, "session_queue_full", "rate_limit_error", 1.0


class Stopped(ProxyError):
    """The turn was stopped or interrupted before its answer began."""

    status, code, type, should_retry = 409, "turn_stopped", "conflict_error", False


class Interrupted(Stopped):
    """Another request of the session interrupted the turn."""


class IdempotencyKeyReused(BadRequest):
    status, code, should_retry = 422, "idempotency_key_reused", False


class UpstreamUnreachable(ProxyError):
    status, code, type = 502, "upstream_unreachable", "upstream_error"


class UpstreamTimeout(ProxyError):
    status, code, type = 504, "upstream_timeout", "upstream_error"


class StoreUnavailable(ProxyError):
    status, code, type = 503, "store_unavailable", "server_error"


class Draining(ProxyError):
    status, code, type, retry_after = 503, "draining", "server_error", 1.0


class StoreLocked(Exception):
    """Another process holds the lock of the database; the message names it."""


class UnfitLibrary(Exception):
    """An installed library is not as the proxy needs it; the message says why and what to do."""


class CannotListen(Exception):
    """The process cannot listen on the address; the message says why and what to do."""
