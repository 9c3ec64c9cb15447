"""The life of the process: open the store, listen, reload, sweep, drain. The only wiring.

Knows no HTTP details; what a request does stands in `web`.
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
    """Where the database is; None for `memory:`. Relative paths start at $STATE_DIRECTORY, else
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
    """The store and the secret that belongs to it."""
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
    """Make, and tell of, the copy with which the older version can go on."""
    for folder in remove_old_copies(path, time.time()):
        log.info("the copy %s was made before a migration more than a week ago, and is removed", folder)
    if made := copy_before(path):
        became = f"the database had schema {made.old} and gets schema {made.new}"
        if made.folder:
            log.warning(
                "%s; `restore %s` brings it back for the older version, remove it otherwise", became, made.folder
            )
        else:
            log.warning("%s; no copy of it was made: %s", became, made.why)


async def serve(
    load: Callable[[], Config],
    listen: str | None,
    with_demo: bool,
    environ: Mapping[str, str],
    lines: LogHandler,
    greet: Callable[[], None],
) -> None:
    """Run until SIGTERM or SIGINT. `load` reads the configuration, now and at each reload; `greet` is called once the
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
        """What the file says now, if it may be served at the addresses we have."""
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
            log.warning("listen: %s is not used, for systemd holds the sockets", named)
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
    """Answer the commands of the operator meanwhile; where that cannot be, everything else goes on."""
    async with AsyncExitStack() as stack:
        if database:
            try:
                listener = stack.enter_context(control.bound(database))
                stack.callback(control.left, database)
                await stack.enter_async_context(operator_api.listening(runtime, listener))
            except OSError as error:
                log.warning("commands that need a running proxy cannot reach this one: %s", error.strerror)
        yield


@asynccontextmanager
async def _administered(runtime: Runtime, listening: Listening | None) -> AsyncIterator[None]:
    """Answer an operator's tools meanwhile, where the configuration asks for it. Raises CannotListen."""
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
        log.warning("stopping at once: a second signal came")
        await runtime.registry.drain(0)
    await draining
    for task in (*tasks, again):
        task.cancel()


def _reload(runtime: Runtime, load: Callable[[], Config], status: Status, fixed: Mapping[str, str]) -> None:
    """Swap the configuration for the file's, if it is one; what is `fixed` stays as it was at the start."""
    status.reloading()
    try:
        before, runtime.config = runtime.config, load()
    except ConfigError as error:
        for problem in error.problems:
            log.error("configuration unchanged: %s", problem)
        status.fault = f"the configuration was not reloaded: {error.problems[0]}"
    else:
        status.fault = ""
        if runtime.log:
            runtime.log.adjust(runtime.config.log.level, runtime.config.log.format)
        log.info("configuration reloaded")
        for key, value in _fixed(runtime.config).items():
            if value != fixed[key]:
                log.warning("%s: %s takes effect with a restart; %s is in force", key, value, fixed[key])
        for was, name in renamed(_clients(before), _clients(runtime.config)):
            log.warning(
                "clients: %s was called %s, and its sessions are those of that name; call it so again to have them",
                name,
                was,
            )
    status.ready()


def _clients(config: Config) -> list[tuple[str, tuple[str, ...]]]:
    return [(client.name, client.key_hashes) for client in config.clients]


def _fixed(config: Config) -> dict[str, str]:
    """What holds until a restart, as a file would have it."""
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
            log.exception("sweeping failed; it will be tried again")


def _spare_the_collector() -> None:
    """What lives long here are modules and warm sessions, which hold no cycles. To look at them again and again took a
    sixth of a turn's CPU, and all streams waited meanwhile. An answer in flight holds some 160 values: that 200 begin
    at once is no reason to look, either."""
    gc.freeze()
    gc.set_threshold(50_000, 20, 1_000)


def _onto_demo(config: Config, port: int) -> Config:
    """The same configuration with the embedded demo as its one upstream."""
    first = config.upstreams[0].model_copy(update={"base_url": f"http://127.0.0.1:{port}/v1", "api_key": None})
    return config.model_copy(update={"upstreams": (first,)})


def _ids(prefix: str) -> Iterator[str]:
    """Each call to the kernel for randomness costs as much as forty IDs do otherwise."""
    while True:
        drawn = secrets.token_hex(12 * 64)
        yield from [prefix + drawn[at : at + 24] for at in range(0, len(drawn), 24)]


def configure_logging(config: Config, environ: Mapping[str, str]) -> LogHandler:
    """Log to the error output from now on."""
    descriptor = sys.stderr.fileno()
    lines = LogHandler(descriptor, config.log.level, config.log.format, is_journal(descriptor, environ))
    lines.install()
    return lines
