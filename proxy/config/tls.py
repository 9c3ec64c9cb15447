"""The certificate of the listener: read whole, and swapped for new connections when it was renewed.

It never knows the configuration, nor who listens.
"""

from __future__ import annotations

import ssl
from pathlib import Path

from proxy.config.yaml_source import readable_by_all


def read(certificate: Path, key: Path) -> ssl.SSLContext:
    """What a server needs to prove who it is. ValueError says what is wrong with which file."""
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
    """One certificate at a time: `context` is what listeners are given once, `renew` what it shows from then on."""

    def __init__(self, first: ssl.SSLContext) -> None:
        self.context, self._newest = first, first
        first.sni_callback = self._choose

    def renew(self, context: ssl.SSLContext) -> None:
        """Connections that are open keep what they have."""
        self._newest = context

    def _choose(self, connection: ssl.SSLObject, name: str | None, context: ssl.SSLContext) -> None:
        # called at each handshake, with or without a name
        connection.context = self._newest


def unproven(certificate: str | None, key: str | None) -> str | None:
    """Why a listener could not prove who it is; None if it can."""
    if not certificate or not key:
        return "a certificate and its key belong together; name both, or neither"
    try:
        read(Path(certificate), Path(key))
    except ValueError as wrong:
        return str(wrong)
    return None
