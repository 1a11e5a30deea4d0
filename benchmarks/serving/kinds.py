"""The servers that are compared: names, and what each is called, drawn with and started with."""

from typing import NamedTuple

STOCK, LAPROX, FP8, LAPROX_FP8 = "stock", "laprox", "stock-fp8", "laprox-fp8"
STOCK_HOST, LAPROX_HOST = "stock-host", "laprox-host"
# What LaProx keeps of a prompt, unless a server's name says otherwise.
BUDGET = 0.05

Flags = tuple[str, ...]
# The usual alternative: half the bytes of every cell.
FP8_FLAGS: Flags = ("--kv-cache-dtype", "fp8_e4m3")
# 90 GB hold 690,000 slots of the 8B shapes.
HOST_FLAGS: Flags = (
    *("--enable-hierarchical-cache", "--hicache-mem-layout", "page_first", "--hicache-io-backend", "kernel"),
    *("--hicache-size", "90"),
)
# Not SGLang's default, but its default gains nothing from a host pool smaller than the GPU's.
WRITE_BACK: Flags = (*HOST_FLAGS, "--hicache-write-policy", "write_back")
# All that SGLang has for agents: they name their session and close it when it is over, and of those that wait
# the next one is who has waited longest beside what it has to compute.
SESSIONS = "--enable-session-radix-cache"
FOR_AGENTS: Flags = (*WRITE_BACK, SESSIONS, "--schedule-policy", "hrrn")


def keeping(budget: float, most: float | None = None) -> Flags:
    """
    Args:
        most: what a view may have while there is room.
    """
    promised = ("--enable-laprox", "--laprox-budget", str(budget))
    return promised if most is None else (*promised, "--laprox-budget-max", str(most))


class Kind(NamedTuple):
    """
    Attributes:
        title: in tables and pictures.
        flags: of ``sglang.launch_server``, beside those that all have.
    """

    title: str
    colour: str
    flags: Flags


OURS = keeping(BUDGET)
# A server more is a line here. They run, and stand in tables and pictures, in this order.
KINDS = {
    STOCK: Kind("stock SGLang", "#8a8f98", ()),
    LAPROX: Kind("LaProx, 5 %", "#1f6feb", OURS),
    FP8: Kind("stock SGLang, fp8 KV", "#c98a2b", FP8_FLAGS),
    LAPROX_FP8: Kind("LaProx, 5 %, fp8 KV", "#1a7f37", (*FP8_FLAGS, *OURS)),
    STOCK_HOST: Kind("stock, host tier", "#4d5258", HOST_FLAGS),
    "stock-host-back": Kind("stock, host tier, write_back", "#a33b3b", WRITE_BACK),
    LAPROX_HOST: Kind("LaProx, 5 %, host tier", "#0b3a8f", (*WRITE_BACK, *OURS)),
    "stock-agents": Kind("stock, set for agents", "#e07a7a", FOR_AGENTS),
    "laprox-agents": Kind("LaProx, 5 %, set for agents", "#00a3a3", (*FOR_AGENTS, *OURS)),
    "stock-fp8-host": Kind("stock, fp8 KV, host tier", "#7a4f10", (*FP8_FLAGS, *WRITE_BACK)),
    "laprox-fp8-host": Kind("LaProx, 5 %, fp8 KV, host tier", "#0b4a1e", (*FP8_FLAGS, *WRITE_BACK, *OURS)),
    "laprox-20": Kind("LaProx, 20 %", "#7fb2ff", keeping(0.2)),
    "laprox-30": Kind("LaProx, 30 %", "#b8d4ff", keeping(0.3)),
    "laprox-5-30": Kind("LaProx, 5 %, at most 30 %", "#5b3fd1", keeping(BUDGET, 0.3)),
}
SERVERS = tuple(KINDS)


def of_stock(server: str) -> bool:
    return "--enable-laprox" not in KINDS[server].flags


def of_laprox(server: str) -> bool:
    """LaProx at ``BUDGET``, without a second budget: its flags end with ``OURS``."""
    return KINDS[server].flags[-len(OURS) :] == OURS
