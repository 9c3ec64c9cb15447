"""Why an upstream cannot be reached, in a sentence for whoever reads the answer: what happened, and what to do. Pure.

It names no host, port or path: the answer goes to callers, who need not know the operator's network. The log names
the host.
"""

from __future__ import annotations

import errno
import socket
import ssl

AWAY = "The upstream cannot be reached"
_CLOCK = "look at the upstream's certificate, or at the clock of the proxy's machine"
_ROOTS = "trust its issuer on the proxy's machine (SSL_CERT_FILE names a file of certificates)"
_NAMED = "write in base_url the name that the certificate is for"
_CERTIFICATES = {  # by OpenSSL's number of what it found
    9: ("is not valid yet", _CLOCK),
    10: ("has expired", _CLOCK),
    18: ("is signed by itself", _ROOTS),
    19: ("is signed by an issuer that is not trusted", _ROOTS),
    20: ("is signed by an issuer that is not known", _ROOTS),
    21: ("is signed by an issuer that is not known", _ROOTS),
    62: ("is for another name", _NAMED),
    64: ("is for another address", _NAMED),
}
_NO_TLS = ("WRONG_VERSION_NUMBER", "HTTP_REQUEST", "PACKET_LENGTH_TOO_LONG")  # OpenSSL's names for it
_NO_WAY = (errno.ENETUNREACH, errno.EHOSTUNREACH, errno.ENETDOWN, errno.EHOSTDOWN, errno.EADDRNOTAVAIL)


def why(error: BaseException | None, secure: bool = False) -> str:
    """What stood in the way of a connection; `secure`: one with TLS."""
    return f"{AWAY}: {_reason(error, secure)}."


def late(seconds: float, secure: bool = False) -> str:
    """No connection came about within a time."""
    what = "no connection came about in time, TLS included" if secure else "no connection came about in time"
    perhaps = ", or write http:// in base_url where it speaks no TLS" if secure else ""
    return (
        f"{AWAY}: {what} (connect_timeout, {seconds:g} seconds)."
        f" Look whether it runs and whether a firewall is in the way{perhaps}; else try again later."
    )


def _reason(error: BaseException | None, secure: bool) -> str:
    if isinstance(error, ssl.SSLCertVerificationError):
        what, do = _CERTIFICATES.get(getattr(error, "verify_code", 0), ("is not trusted", _ROOTS))
        return f"its TLS certificate {what}. To correct it, {do}"
    if isinstance(error, socket.gaierror):
        return "its host name is not known (DNS). Correct the host in base_url, or look at the proxy machine's DNS"
    if isinstance(error, ConnectionRefusedError):
        return "it refused the connection. Start it, or correct host and port in base_url"
    if isinstance(error, ssl.SSLError) and getattr(error, "reason", "") in _NO_TLS:
        return "it does not speak TLS there. Write http:// in base_url, or the port where it does"
    if isinstance(error, ssl.SSLError) or (secure and isinstance(error, ConnectionError | EOFError)):
        return (
            "the TLS handshake failed. Look whether base_url names a port that speaks TLS, and which versions it takes"
        )
    number = error.errno if isinstance(error, OSError) else None
    if number in _NO_WAY:
        return "there is no way to its address (network). Correct the host in base_url, or look at the proxy's network"
    if number == errno.ETIMEDOUT:
        return "no connection came about in time. Look whether it runs and whether a firewall is in the way"
    if number in (errno.EMFILE, errno.ENFILE):
        return "the proxy may open no more files. Raise LimitNOFILE= or ulimit -n, or try again later"
    if isinstance(error, ConnectionError):
        return "it closed the connection before it answered. Try again later"
    return "no connection came about. Look at its address in base_url, or try again later"
