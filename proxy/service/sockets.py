"""Listens for requests on a configured address, or on sockets that systemd passes.

Knows nothing of what is served there.
"""

from __future__ import annotations

import os
import socket
import ssl
from collections.abc import Sequence
from pathlib import Path

from aiohttp import web

from proxy.config import model as configuration
from proxy.config.model import Tls
from proxy.config.tls import Certificate, read
from proxy.errors import CannotListen, ConfigError

BACKLOG = 4096  # connections that wait to be taken, as systemd's own; listening again would shorten its line


class Listening:
    """Listens from `start` to `stop`: on the `inherited` sockets if there are any, else on `listen`."""

    def __init__(self, listen: str, inherited: Sequence[socket.socket]) -> None:
        for each in inherited:
            if each.type != socket.SOCK_STREAM or not each.getsockopt(socket.SOL_SOCKET, socket.SO_ACCEPTCONN):
                raise CannotListen("systemd passed a socket that does not listen. Use ListenStream= and Accept=no.")
        self.addresses = tuple([_name(each) for each in inherited]) or (listen,)
        self._inherited = inherited
        self._sites: list[web.BaseSite] = []
        self._certificate: Certificate | None = None

    def __str__(self) -> str:
        return ", ".join(self.addresses)

    def secure(self, tls: Tls) -> None:
        """Present this certificate to new connections. Has no effect on a listener that started without TLS.

        Raises ConfigError.
        """
        if not tls.certificate or not tls.key:
            return
        try:
            context = read(Path(tls.certificate), Path(tls.key))
        except ValueError as wrong:
            raise ConfigError([f"tls: {wrong}"]) from None
        if self._certificate:
            self._certificate.renew(context)
        else:
            self._certificate = Certificate(context)

    async def start(self, runner: web.ServerRunner) -> None:
        """Start to listen; with TLS if there is a certificate, but never on Unix sockets. Raises CannotListen."""
        context = self._certificate.context if self._certificate else None
        if self._inherited:
            self._sites = [_taken(runner, each, context) for each in self._inherited]
        else:
            self._sites = [_site(runner, self.addresses[0], context)]
        try:
            for site in self._sites:
                await site.start()
        except OSError as error:
            raise _refused(str(self), error) from error

    async def stop(self) -> None:
        """Stop accepting connections. Where systemd holds the socket, connections not accepted yet wait for the next
        process."""
        for site in self._sites:
            await site.stop()


def _site(runner: web.ServerRunner, listen: str, context: ssl.SSLContext | None) -> web.BaseSite:
    address = configuration.address(listen)
    if not isinstance(address, str):
        return web.TCPSite(runner, *address, ssl_context=context, backlog=BACKLOG)
    with socket.socket(socket.AF_UNIX) as probe:
        # one that nobody listens on any more is replaced; another process's would be, too
        if probe.connect_ex(address) == 0:
            raise CannotListen(
                f"Cannot listen on {listen}: another process listens there. Stop it, or choose another address."
            )
    return web.UnixSite(runner, address, backlog=BACKLOG)


def _taken(runner: web.ServerRunner, inherited: socket.socket, context: ssl.SSLContext | None) -> web.BaseSite:
    fit = None if inherited.family == socket.AF_UNIX else context
    return web.SockSite(runner, inherited, ssl_context=fit, backlog=BACKLOG)


def _name(inherited: socket.socket) -> str:
    """Return a socket's address as the configuration spells it."""
    address = inherited.getsockname()
    if inherited.family == socket.AF_UNIX:
        path = os.fsdecode(address)
        return "unix:/" + path.lstrip("/\0")
    host = address[0].partition("%")[0]
    return f"[{host}]:{address[1]}" if ":" in host else f"{host}:{address[1]}"


def _refused(listen: str, error: OSError) -> CannotListen:
    known = error.errno and not isinstance(error, socket.gaierror)
    reason = os.strerror(error.errno).lower() if known and error.errno else str(error.strerror or error).lower()
    return CannotListen(f"Cannot listen on {listen}: {reason}. Choose another address, in the file or with --listen.")
