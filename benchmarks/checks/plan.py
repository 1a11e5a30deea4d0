"""The checks in both sizes, and what the soak reads of the memory."""

from dataclasses import replace

import psutil
import torch

from benchmarks.checks.answers import (
    Conversations,
    ConversationSizes,
    Identity,
    IdentitySizes,
    Needles,
    NeedleSizes,
)
from benchmarks.checks.servers import ON_GPU, Server
from benchmarks.checks.soak import Memory, Soak, SoakSizes

CHECKS = ("needles", "conversations", "identity", "soak")
SLOTS = {False: 131_072, True: 32_768}
NEEDLES = {False: NeedleSizes(256, 4096, 32), True: NeedleSizes(8, 1024, 4)}
TALKS = {
    False: ConversationSizes(64, (100, 12, 12, 12, 12, 12), 16),
    # Shorter, 5 % of a turn are less than the smallest view: little of an answer would be kept.
    True: ConversationSizes(2, (100, 4, 4), 2),
}
IDENTITY = {False: IdentitySizes(64, 600, 3000, 32), True: IdentitySizes(8, 600, 1200, 8)}
SOAK = {
    False: SoakSizes(seconds=300, clients=24, slots=6000, whole=128, longest=3000, events=20),
    True: SoakSizes(seconds=30, clients=6, slots=3000, whole=16, longest=1490, events=1),
}
MEBIBYTE = 2**20
Check = Needles | Conversations | Identity | Soak


def make_check(name: str, quick: bool, seconds: int | None) -> Check:
    if name == "needles":
        return Needles(NEEDLES[quick], SLOTS[quick])
    if name == "conversations":
        return Conversations(TALKS[quick], SLOTS[quick])
    if name == "identity":
        return Identity(IDENTITY[quick], SLOTS[quick])
    sizes = replace(SOAK[quick], seconds=seconds or SOAK[quick].seconds)
    return Soak(sizes, SLOTS[quick], GPU_MEMORY if ON_GPU else HOST_MEMORY)


def host_memory(server: Server) -> float:
    main = psutil.Process(server.pid)
    return sum(p.memory_info().rss for p in [main, *main.children(recursive=True)]) / MEBIBYTE


# What a container's process numbers are outside is unknown, so the memory is that of the whole device.
GPU_MEMORY = Memory("GPU memory", lambda _: torch.cuda.device_memory_used(0) / MEBIBYTE, may_grow=64)
HOST_MEMORY = Memory("host memory", host_memory, may_grow=None)
