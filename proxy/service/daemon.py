"""Runs the process: opens the store, listens, reloads, sweeps expired sessions and drains. Wires all objects together.

Knows no details of HTTP; `server` answers the requests.
"""

from __future__ import annotations

import asyncio
import gc
import logging
import os
import secrets
import signal
import sys
import time
from collections.abc import AsyncIterator, Callable, Iterator, Mapping
from contextlib import AsyncExitStack, asynccontextmanager
from functools import partial
from pathlib import Path

from proxy import demo
from proxy.config import model as configuration
from proxy.config.model import Config
from proxy.config.workable import renamed
from proxy.context.runtime import Runtime
from proxy.errors import ConfigError, StoreUnavailable
from proxy.foundation.self_test import refuse_unfit
from proxy.observe.log import LogHandler, is_journal, loop_fault
from proxy.server import admin, operator_api
from proxy.server.app import build_app, build_runner
from proxy.service import control_socket as control
from proxy.service import systemd
from proxy.service.sockets import Listening
from proxy.service.status import Status
from proxy.stores.base import Store, StoreStats
from proxy.stores.cache import CachedStore
from proxy.stores.memory import MemoryStore
from proxy.stores.secret import SIZE, load_secret, refuse_foreign, seal_of
from proxy.stores.sqlite.remedy import remedy
from proxy.stores.sqlite.store import SQLiteStore
from proxy.stores.sqlite.upgrade import copy_before, remove_old_copies
from proxy.upstream.client import Client

log = logging.getLogger("proxy.daemon")
SWEEP_EVERY = 60.0  # seconds
SWEEP_BATCH = 100  # sessions; a batch is one short transaction
LEAVING = 0.5  # seconds from the last connection that is taken to the first request that is refused
CLEANING = 15.0  # seconds that the end takes at most after the drain


def database_path(config: Config, environ: Mapping[str, str]) -> Path | None:
    """Return the path of the database; None for `memory:`. Relative paths start at $STATE_DIRECTORY, else
    at the user's state folder."""
    if config.store.path == "memory:":
        return None
    if "STATE_DIRECTORY" in environ:
        folder = Path(environ["STATE_DIRECTORY"].partition(":")[0])
    else:
        base = environ.get("XDG_STATE_HOME") or os.path.expanduser("~/.local/state")
        folder = Path(base) / "session-proxy"
    return folder / config.store.path


async def open_store(config: Config, environ: Mapping[str, str]) -> tuple[Store, bytes]:
    """Open the store and load its secret. Raises StoreUnavailable and StoreLocked."""
    ttl = round(config.sessions.ttl * 1000)
    path = database_path(config, environ)
    fresh = secrets.token_bytes(SIZE)
    if path is None:
        return MemoryStore(ttl), fresh
    await asyncio.to_thread(copy_before_migration, path)
    store = await SQLiteStore.open(path, ttl)
    try:
        secret = load_secret(path, None if store.holds_turns else fresh)
        refuse_foreign(path, secret, await store.seal(seal_of(secret)))
    except BaseException as error:
        await store.close()
        if isinstance(error, OSError):
            raise StoreUnavailable(f"Cannot use {path}.secret: {error.strerror}. {remedy(error)}") from error
        raise
    return CachedStore(store, ttl, config.limits.cache), secret


def copy_before_migration(path: Path) -> None:
    """Copy the database before a migration, so that the older version can be restored; log what was done."""
    for folder in remove_old_copies(path, time.time()):
        log.info("removed %s, a copy made before a migration more than a week ago", folder)
    if made := copy_before(path):
        became = f"migrating the database from schema {made.old} to {made.new}"
        if made.folder:
            log.warning(
                "%s; to go back to the older version, `restore %s`; delete that copy otherwise", became, made.folder
            )
        else:
            log.warning("%s without a copy of it: %s", became, made.why)


async def serve(
    load: Callable[[], Config],
    listen: str | None,
    with_demo: bool,
    environ: Mapping[str, str],
    lines: LogHandler,
    greet: Callable[[], None],
) -> None:
    """Run until SIGTERM or SIGINT. Calls `load` for the configuration now and at each reload, and `greet` once the
    proxy listens.

    Raises UnfitLibrary, CannotListen, StoreLocked, StoreUnavailable and ConfigError, each with a sentence.
    """
    refuse_unfit(asyncio.get_running_loop())
    inherited = systemd.inherited(environ, os.getpid())
    demo_runner, demo_port = await demo.start() if with_demo else (None, 0)
    asyncio.get_running_loop().set_exception_handler(loop_fault)
    config = load()
    listening = Listening(listen or config.listen, inherited)
    administered = Listening(config.admin.listen, ()) if config.admin.listen else None

    def read() -> Config:
        """Load the configuration again. Raises ConfigError if it must not be served at the current addresses."""
        config = _onto_demo(load(), demo_port) if with_demo else load()
        for address in listening.addresses:
            if why := configuration.unsafe(config, address):
                raise ConfigError([f"{address}: {why}"])
        for each in filter(None, (listening, administered)):
            each.secure(config.tls)
        return config

    config = read()
    store, secret = await open_store(config, environ)
    client = Client()
    turn_id, request_id = [partial(next, _ids(prefix)) for prefix in ("turn_", "req_")]
    runtime = Runtime(config, store, client, secret, lambda: time.time_ns() // 1_000_000, turn_id)
    runtime.request_id, runtime.log = request_id, lines
    runner = build_runner(build_app(runtime), config)
    _spare_the_collector()
    try:
        await runner.setup()
        await listening.start(runner)
        greet()
        log.info("listening on %s", listening)
        if (named := listen or config.listen) not in listening.addresses:
            log.warning("listen: %s is ignored, because systemd holds the sockets", named)
        status = Status(lambda: runtime.registry.in_flight, environ, os.getpid())
        async with _operated(runtime, database_path(config, environ)), _administered(runtime, administered):
            await _live(runtime, listening, read, status)
    finally:
        await runner.cleanup()
        await client.close()
        await store.close()
        if demo_runner:
            await demo_runner.cleanup()


@asynccontextmanager
async def _operated(runtime: Runtime, database: Path | None) -> AsyncIterator[None]:
    """Serve the control socket during the block. Without one the proxy runs on, with a warning."""
    async with AsyncExitStack() as stack:
        if database:
            try:
                listener = stack.enter_context(control.bound(database))
                stack.callback(control.left, database)
                await stack.enter_async_context(operator_api.listening(runtime, listener))
            except OSError as error:
                log.warning("cannot open the control socket, so commands cannot reach this proxy: %s", error.strerror)
        yield


@asynccontextmanager
async def _administered(runtime: Runtime, listening: Listening | None) -> AsyncIterator[None]:
    """Serve the admin listener during the block, if it is configured. Raises CannotListen."""
    if listening is None:
        yield
        return
    from proxy.observe import prometheus as metrics  # nobody else needs prometheus-client

    rendered, limit = metrics.Metrics(runtime.counters), runtime.config.limits.cache  # a reload does not change it

    def render(runtime: Runtime, store: StoreStats | None) -> tuple[bytes, str]:
        registry = runtime.registry
        present = metrics.Present(registry.in_flight, registry.waiting, limit, registry.draining, store)
        return rendered.render(present), metrics.CONTENT_TYPE

    runner = admin.build_runner(runtime, render)
    try:
        await runner.setup()
        await listening.start(runner)
        log.info("admin listener on %s", listening)
        yield
    finally:
        await runner.cleanup()


async def _live(runtime: Runtime, listening: Listening, load: Callable[[], Config], status: Status) -> None:
    loop = asyncio.get_running_loop()
    stop, fixed = asyncio.Event(), _fixed(runtime.config)
    for number in (signal.SIGTERM, signal.SIGINT):
        loop.add_signal_handler(number, stop.set)
    loop.add_signal_handler(signal.SIGHUP, lambda: _reload(runtime, load, status, fixed))
    tasks = [asyncio.create_task(_sweep(runtime)), asyncio.create_task(status.keep())]
    status.ready()
    await stop.wait()
    stop.clear()
    again = asyncio.create_task(stop.wait())
    drain = runtime.config.shutdown.drain
    status.stopping(drain + CLEANING)
    await listening.stop()
    runtime.registry.leaving = True
    await asyncio.sleep(LEAVING)
    log.info("stopping: %d requests in flight", runtime.registry.in_flight)
    draining = asyncio.create_task(runtime.registry.drain(drain))
    await asyncio.wait([draining, again], return_when=asyncio.FIRST_COMPLETED)
    if not draining.done():
        log.warning("stopping at once after a second signal")
        await runtime.registry.drain(0)
    await draining
    for task in (*tasks, again):
        task.cancel()


def _reload(runtime: Runtime, load: Callable[[], Config], status: Status, fixed: Mapping[str, str]) -> None:
    """Reload the configuration if the file is valid; the `fixed` values stay as at the start."""
    status.reloading()
    try:
        before, runtime.config = runtime.config, load()
    except ConfigError as error:
        for problem in error.problems:
            log.error("configuration not reloaded: %s", problem)
        status.fault = f"the configuration was not reloaded: {error.problems[0]}"
    else:
        status.fault = ""
        if runtime.log:
            runtime.log.adjust(runtime.config.log.level, runtime.config.log.format)
        log.info("configuration reloaded")
        for key, value in _fixed(runtime.config).items():
            if value != fixed[key]:
                log.warning("%s: %s takes effect after a restart; %s stays in force", key, value, fixed[key])
        for was, name in renamed(_clients(before), _clients(runtime.config)):
            lost = "cannot reach the sessions of that name; rename it back to reach them"
            log.warning("clients: %s was renamed from %s and %s", name, was, lost)
    status.ready()


def _clients(config: Config) -> list[tuple[str, tuple[str, ...]]]:
    return [(client.name, client.key_hashes) for client in config.clients]


def _fixed(config: Config) -> dict[str, str]:
    """Return the settings that only a restart changes, as a file spells them."""
    limits = config.limits
    return {
        "listen": config.listen,
        "admin.listen": config.admin.listen or "null",
        "tls": "off" if config.tls.certificate is None else "on",
        "store.path": config.store.path,
        "sessions.ttl": f"{config.sessions.ttl:g}s",
        "limits.cache": f"{limits.cache >> 20}MiB" if limits.cache % (1 << 20) == 0 else f"{limits.cache}B",
        "limits.header_timeout": f"{limits.header_timeout:g}s",
    }


async def _sweep(runtime: Runtime) -> None:
    while True:
        await asyncio.sleep(SWEEP_EVERY)
        try:
            full = True
            while full:
                full = await runtime.store.sweep(runtime.now(), runtime.registry.in_use, SWEEP_BATCH) == SWEEP_BATCH
        except Exception:
            log.exception("cannot delete expired sessions; trying again in a minute")


def _spare_the_collector() -> None:
    """Make the garbage collector run rarely. Modules and cached sessions live long and hold no cycles; scanning them
    took a sixth of a turn's CPU and paused all streams. The thresholds let 200 answers, of some 160 objects each, begin
    at once without a run."""
    gc.freeze()
    gc.set_threshold(50_000, 20, 1_000)


def _onto_demo(config: Config, port: int) -> Config:
    """Replace the upstreams of a configuration by the embedded demo."""
    first = config.upstreams[0].model_copy(update={"base_url": f"http://127.0.0.1:{port}/v1", "api_key": None})
    return config.model_copy(update={"upstreams": (first,)})


def _ids(prefix: str) -> Iterator[str]:
    """Yield random IDs. Draws randomness for 64 at once: a call to the kernel costs as much as forty IDs."""
    while True:
        drawn = secrets.token_hex(12 * 64)
        yield from [prefix + drawn[at : at + 24] for at in range(0, len(drawn), 24)]


def configure_logging(config: Config, environ: Mapping[str, str]) -> LogHandler:
    """Send the log to the standard error."""
    descriptor = sys.stderr.fileno()
    lines = LogHandler(descriptor, config.log.level, config.log.format, is_journal(descriptor, environ))
    lines.install()
    return lines
