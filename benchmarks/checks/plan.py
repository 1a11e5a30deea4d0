"""The checks in both sizes, what the soak reads of the memory, and how a check is run."""

import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import psutil
import torch

from benchmarks.checks.answers import Conversations, Identity, Needles
from benchmarks.checks.servers import ON_GPU, Server
from benchmarks.checks.soak import Memory, Soak, SoakSizes
from benchmarks.harness.client import backend_of

CHECKS = ("needles", "conversations", "identity", "soak")
SLOTS = {False: 131_072, True: 32_768}
NEEDLES = {False: (256, 4096, 32), True: (8, 1024, 4)}
# Shorter, the least that a fraction is would be far more than 5 % of a turn.
TALKS = {False: (64, [100, 12, 12, 12, 12, 12], 16), True: (2, [100, 4, 4], 2)}
IDENTITY = {False: (64, 600, 3000, 32), True: (8, 600, 1200, 8)}
SOAK = {
    False: SoakSizes(seconds=300, clients=24, slots=6000, whole=128, longest=3000, events=20),
    True: SoakSizes(seconds=30, clients=6, slots=3000, whole=16, longest=1490, events=1),
}
MEBIBYTE = 2**20
Check = Needles | Conversations | Identity | Soak


def make_check(name: str, quick: bool, seconds: int | None) -> Check:
    if name == "needles":
        return Needles(*NEEDLES[quick], SLOTS[quick])
    if name == "conversations":
        return Conversations(*TALKS[quick], SLOTS[quick])
    if name == "identity":
        return Identity(*IDENTITY[quick], SLOTS[quick])
    sizes = replace(SOAK[quick], seconds=seconds or SOAK[quick].seconds)
    return Soak(sizes, SLOTS[quick], GPU_MEMORY if ON_GPU else HOST_MEMORY)


def host_memory(server: Server) -> float:
    main = psutil.Process(server.pid)
    return sum(p.memory_info().rss for p in [main, *main.children(recursive=True)]) / MEBIBYTE


# What a container's process numbers are outside is unknown, so the memory is that of the whole device.
GPU_MEMORY = Memory("GPU memory", lambda _: torch.cuda.device_memory_used(0) / MEBIBYTE, may_grow=64)
HOST_MEMORY = Memory("host memory", host_memory, may_grow=None)


def run(check: Check, flags: list[str], logs: Path, say: Callable[[str], None]) -> dict[str, str]:
    """Asks every server of a check, one after the other, what the check asks of it.

    Args:
        flags: more of them, for every server.

    Returns:
        The attention backend of every server.

    Raises:
        ServerError: a server did not start, or failed.
    """
    backends = {}
    for name, asked in check.servers().items():
        started = time.monotonic()
        with Server(name, [*asked.flags, *flags], logs, asked.environment) as server:
            server.warm_up()
            backends[name] = backend_of(server.info())
            say(f"{check.NAME}, server {name}: up after {time.monotonic() - started:.0f} s, {backends[name]}")
            started = time.monotonic()
            asked.ask(server)
            server.flush()
            say(f"{check.NAME}, server {name}: done after {time.monotonic() - started:.0f} s")
    return backends
