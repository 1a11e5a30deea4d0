"""Check of minutes of random traffic against a pool that is too small, with aborts and retractions.

SGLang's own leak checks run after every step; a leak kills the server, and with it the check.
"""

import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import Any

from benchmarks.checks.answers import SEED, STOCK, STRICT
from benchmarks.checks.rows import Row, per_cent
from benchmarks.checks.servers import Asked, Server, is_exact, pool, pruning
from benchmarks.checks.traffic import BUDGET, Seen, Traffic

ENVIRONMENT = STRICT | {
    "SGLANG_TEST_RETRACT": "1",
    "SGLANG_TEST_RETRACT_INTERVAL": "8",
}
IDLE_SECONDS = 20
# The first fifth of the time is left to allocators and caches; in 300 s there is a sample each 10 s.
WARM_SHARE, SAMPLES = 1 / 5, 30


@dataclass(frozen=True)
class SoakSizes:
    """``events``: how often each thing must have happened for the soak to say something."""

    seconds: int
    clients: int
    slots: int
    whole: int
    longest: int
    events: int


@dataclass(frozen=True)
class Memory:
    """Mebibytes that the device, or on a CPU the server, uses now, and how much they may grow."""

    name: str
    read: Callable[[Server], float]
    may_grow: float | None


class Soak:
    """Clients of one server, and what they saw.

    Attributes:
        samples: seconds since the start, and mebibytes then.
    """

    NAME = "soak"
    POINTS = 2

    def __init__(self, sizes: SoakSizes, slots: int, memory: Memory) -> None:
        self._sizes, self._memory, self._stock_pool = sizes, memory, pool(slots)
        self._traffic = Traffic(SEED, sizes.whole, sizes.longest)
        self._stock: list[bool] = []
        self._seen: list[Seen] = []
        self._idle_checks = self._leaks = 0
        self._totals: dict[str, Any] = {}
        self.samples: list[tuple[float, float]] = []

    def servers(self) -> dict[str, Asked]:
        flags = [*pool(self._sizes.slots), *pruning(str(BUDGET)), "--chunked-prefill-size", "256"]
        return {
            STOCK: Asked(self.ask_stock, self._stock_pool),
            self.NAME: Asked(self.run, flags, ENVIRONMENT),
        }

    def ask_stock(self, server: Server) -> None:
        """What stock says to the prompts that stay unpruned here, one by one."""
        asked = [{"ids": sample.prompt_ids(), "tokens": 8} for sample in self._traffic.whole]
        replies = server.generate_all(asked, 1)
        self._stock = list(map(is_exact, replies, self._traffic.whole))

    def run(self, server: Server) -> None:
        started = sampled = time.monotonic()
        rounds = 0
        with ThreadPoolExecutor(self._sizes.clients) as pool:
            while time.monotonic() - started < self._sizes.seconds:
                self._send_round(server, pool)
                self._check_idle(server)
                now = time.monotonic()
                warm = now - started > WARM_SHARE * self._sizes.seconds
                if warm and now - sampled >= self._sizes.seconds / SAMPLES:
                    sampled = now
                    self.samples.append((round(sampled - started, 1), round(self._memory.read(server), 1)))
                for _ in range(2):
                    # Alone on the server, so that it is this one that is cut into chunks.
                    self._seen.append(self._traffic.draw_cut(server)())
                self._check_idle(server)
                rounds += 1
                if rounds % 2:
                    # In every other round the prompts of the last one are still cached, and are evicted.
                    server.flush()
                    self._check_idle(server, flushed=True)
        self._totals = server.laprox()
        self._leaks = server.leaks_in_log()

    def _send_round(self, server: Server, pool: ThreadPoolExecutor) -> None:
        requests = [self._traffic.draw(server) for _ in range(2 * self._sizes.clients)]
        futures = [pool.submit(send) for send in requests]
        try:
            self._seen += [future.result() for future in futures]
        except BaseException:
            # One failure is enough; the rest need not wait for a server that may be dead.
            for future in futures:
                future.cancel()
            raise

    def _check_idle(self, server: Server, flushed: bool = False) -> None:
        """Every slot is free or cached once the server is idle, a moment after its last reply."""
        deadline = time.monotonic() + IDLE_SECONDS
        while True:
            said = server.laprox()
            free = said["available_slots"] + (0 if flushed else said["evictable_slots"])
            if free == said["slots"] and not said["running"] and not said["waiting"]:
                break
            assert time.monotonic() < deadline, f"slots are missing after {IDLE_SECONDS} s: {said}"
            time.sleep(0.05)
        self._idle_checks += 1

    def rows(self) -> list[Row]:
        released = self._totals["released"]
        events = {
            "prunings": self._totals["prunes"],
            "retractions": released.get("retracted", 0),
            "aborts in the queue": sum(seen.finish == "Abort in waiting queue" for seen in self._seen),
            "aborts amid a chunked prefill": released.get("aborted_mid_prefill", 0),
            "aborts while decoding": released.get("aborted_running", 0),
        }
        rows = [Row(self.NAME, f"requests in {self._sizes.seconds} s", len(self._seen))]
        rows += [Row(self.NAME, what, count, least=self._sizes.events) for what, count in events.items()]
        rows.append(Row(self.NAME, "idle checks, every slot accounted for", self._idle_checks, least=1))
        rows.append(Row(self.NAME, "leaks in the server's log", self._leaks, most=0))
        return rows + self._answer_rows() + self._memory_rows()

    def _answer_rows(self) -> list[Row]:
        whole = [(exact, seen.whole) for seen in self._seen if seen.whole is not None for exact in seen.exact]
        pruned = [exact for seen in self._seen if seen.whole is None for exact in seen.exact]
        rows = [Row(self.NAME, f"exact answers, {len(pruned):,} pruned", per_cent(pruned), "%")]
        least = None
        if self._stock:
            stock = per_cent([self._stock[number] for _, number in whole])
            rows.append(Row(self.NAME, "exact answers, stock to the same unpruned prompts", stock, "%"))
            least = stock - self.POINTS
        right = per_cent([exact for exact, _ in whole])
        return [*rows, Row(self.NAME, f"exact answers, {len(whole):,} unpruned", right, "%", least=least)]

    def _memory_rows(self) -> list[Row]:
        used = [mebibytes for _, mebibytes in self.samples]
        name, limit = self._memory.name, self._memory.may_grow
        if len(used) < 2:
            # Nothing was measured, which does not meet a limit.
            return [Row(self.NAME, f"{name}: samples", len(used), least=None if limit is None else 2)]
        above = round(max(used) - used[0], 1)
        return [
            Row(self.NAME, f"{name}: first of {len(used)} samples", used[0], "MiB"),
            Row(self.NAME, f"{name}: last", used[-1], "MiB"),
            Row(self.NAME, f"{name}: largest, above the first", above, "MiB", most=limit),
        ]
