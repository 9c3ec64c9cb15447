"""Loads the listener's certificate, and replaces it for new connections after a renewal.

Knows neither the configuration nor the listener.
"""

from __future__ import annotations

import ssl
from pathlib import Path

from proxy.config.yaml_source import readable_by_all


def read(certificate: Path, key: Path) -> ssl.SSLContext:
    """Load a certificate and its key into a TLS context. ValueError says what is wrong with which file."""
    for file in (certificate, key):
        try:
            file.open("rb").close()
        except OSError as error:
            raise ValueError(f"{file} cannot be read: {str(error.strerror).lower()}; correct this") from None
    if readable_by_all(key):
        raise ValueError(f"everybody can read the file {key}; chmod 600 it")
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.set_alpn_protocols(["http/1.1"])
    try:
        context.load_cert_chain(certificate, key, password=lambda: "")  # never asked for at a terminal
    except ssl.SSLError:
        raise ValueError(
            f"{certificate} and {key} are not a certificate and its key; both must be PEM, the key without a password"
        ) from None
    return context


class Certificate:
    """Holds the current certificate. Listeners get `context` once; `renew` replaces what it presents."""

    def __init__(self, first: ssl.SSLContext) -> None:
        self.context, self._newest = first, first
        first.sni_callback = self._choose

    def renew(self, context: ssl.SSLContext) -> None:
        """Present another certificate to new connections; open ones keep theirs."""
        self._newest = context

    def _choose(self, connection: ssl.SSLObject, name: str | None, context: ssl.SSLContext) -> None:
        # called at each handshake, with or without a name
        connection.context = self._newest


def unproven(certificate: str | None, key: str | None) -> str | None:
    """Return why this certificate and key cannot be used; None if they can."""
    if not certificate or not key:
        return "a certificate needs its key; set both, or neither"
    try:
        read(Path(certificate), Path(key))
    except ValueError as wrong:
        return str(wrong)
    return None
