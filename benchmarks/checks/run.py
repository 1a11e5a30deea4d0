"""Runs a check: its servers one after the other, and then its rows."""

import time
from collections.abc import Callable
from pathlib import Path

from benchmarks.checks.plan import Check
from benchmarks.checks.servers import Server
from benchmarks.harness.client import backend_of

SAY_SECONDS = 20.0
Say = Callable[[str], None]


def run(check: Check, flags: list[str], logs: Path, say: Say) -> dict[str, str]:
    """Asks every server of a check what the check asks of it.

    Args:
        flags: more of them, for every server.

    Returns:
        The attention backend of every server.

    Raises:
        ServerError: a server did not start, or failed.
    """
    backends = {}
    for name, asked in check.servers().items():
        server = Server(name, [*asked.flags, *flags], logs, asked.environment)
        started = time.monotonic()
        with server:
            server.warm_up()
            backends[name] = backend_of(server.info())
            say(f"{check.NAME}, server {name}: up after {time.monotonic() - started:.0f} s, {backends[name]}")
            started = time.monotonic()
            asked.ask(server, progress(f"{check.NAME}, server {name}", say))
            server.flush()
            say(f"{check.NAME}, server {name}: done after {time.monotonic() - started:.0f} s")
    return backends


def progress(what: str, say: Say) -> Callable[[], None]:
    """Counts requests that have ended, and says so now and then."""
    ended, said = 0, time.monotonic()

    def tick() -> None:
        nonlocal ended, said
        ended += 1
        if time.monotonic() - said > SAY_SECONDS:
            said = time.monotonic()
            say(f"{what}: {ended} requests")

    return tick
