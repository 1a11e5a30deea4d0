"""The servers that the checks need, and what each is asked."""

from collections.abc import Callable
from dataclasses import dataclass, field, replace

import psutil
import torch

from benchmarks.checks.answers import (
    STOCK,
    Conversations,
    Identity,
    IdentitySizes,
    Needles,
    NeedleSizes,
    TalkSizes,
    Tick,
)
from benchmarks.checks.servers import ON_GPU, Server
from benchmarks.checks.soak import ENVIRONMENT, FLAGS, STRICT, Memory, Soak, SoakSizes

CHECKS = ("needles", "conversations", "identity", "soak")
SLOTS = {False: 131_072, True: 32_768}
NEEDLES = {False: NeedleSizes(256, 4096, 32), True: NeedleSizes(8, 1024, 4)}
TALKS = {
    False: TalkSizes(64, (100, 12, 12, 12, 12, 12), 16),
    # Shorter, 5 % of a turn are less than the smallest view: little of an answer would be kept.
    True: TalkSizes(2, (100, 4, 4), 2),
}
IDENTITY = {False: IdentitySizes(64, 600, 3000, 32), True: IdentitySizes(8, 600, 1200, 8)}
SOAK = {
    False: SoakSizes(seconds=300, clients=24, slots=6000, whole=128, longest=3000, events=20),
    True: SoakSizes(seconds=30, clients=6, slots=3000, whole=16, longest=1490, events=1),
}
MEBIBYTE = 2**20
Work = Callable[[Server, Tick], None]


@dataclass
class Lane:
    """One server, and what it is asked, one after the other: names of checks and their work."""

    flags: list[str]
    slots: int
    environment: dict[str, str] = field(default_factory=dict)
    work: list[tuple[str, Work]] = field(default_factory=list)


@dataclass(frozen=True)
class Plan:
    """The checks that were asked for, and the servers that they need."""

    checks: list[Needles | Conversations | Identity | Soak]
    lanes: dict[str, Lane]


def make_plan(names: list[str], quick: bool, seconds: int | None) -> Plan:
    slots = SLOTS[quick]
    lanes = {STOCK: Lane([], slots)}
    checks: list[Needles | Conversations | Identity | Soak] = []

    def add(name: str, budget: str, work: Work) -> None:
        flags = ["--enable-laprox", "--laprox-budget", budget]
        lanes.setdefault(budget, Lane(flags, slots)).work.append((name, work))

    if "needles" in names:
        needles = Needles(NEEDLES[quick])
        flags = ["--enable-laprox", "--laprox-budget", needles.PRUNED]
        lanes[needles.NAME] = Lane(flags, slots, STRICT, [(needles.NAME, needles.ask)])
        checks.append(needles)
    if "conversations" in names:
        talks = Conversations(TALKS[quick])
        lanes[STOCK].work.append((talks.NAME, talks.ask))
        add(talks.NAME, talks.PRUNED, talks.ask)
        checks.append(talks)
    if "identity" in names:
        identity = Identity(IDENTITY[quick])
        lanes[STOCK].work.append((identity.NAME, identity.ask))
        add(identity.NAME, identity.WHOLE, identity.ask)
        add(identity.NAME, identity.ALMOST, identity.ask)
        checks.append(identity)
    if "soak" in names:
        sizes = replace(SOAK[quick], seconds=seconds or SOAK[quick].seconds)
        soak = Soak(sizes, GPU_MEMORY if ON_GPU else HOST_MEMORY)
        lanes[STOCK].work.append((soak.NAME, soak.ask_stock))
        lanes[soak.NAME] = Lane([*FLAGS], sizes.slots, ENVIRONMENT, [(soak.NAME, soak.run)])
        checks.append(soak)
    return Plan(checks, {name: lane for name, lane in lanes.items() if lane.work})


def host_memory(server: Server) -> float:
    main = psutil.Process(server.pid)
    return sum(p.memory_info().rss for p in [main, *main.children(recursive=True)]) / MEBIBYTE


# What a container's process numbers are outside is unknown, so the memory is that of the whole device.
GPU_MEMORY = Memory("GPU memory", lambda _: torch.cuda.device_memory_used(0) / MEBIBYTE, may_grow=64)
HOST_MEMORY = Memory("host memory", host_memory, may_grow=None)
