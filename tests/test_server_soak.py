"""300 requests against a pool that is too small, with retractions, aborts of every kind and flushes.

SGLang's own leak checks run after every step; a leak kills the server, and with it the test.
"""

import random
import threading
from collections import Counter
from collections.abc import Callable

from benchmarks.harness.client import facts, generation, holds_its_budget
from laprox_sglang.needle import Task
from server import Server

POOL = 4000
ROUNDS = 13
TOKENS = 12
BUDGET = 0.2
FLAGS = (
    "--enable-laprox",
    *("--laprox-budget", str(BUDGET)),
    *("--chunked-prefill-size", "256"),
)


class Soak:
    """Clients of one server, and what they saw."""

    def __init__(self, server: Server, seed: int) -> None:
        self.server = server
        self.seen: Counter[str] = Counter()
        self._draw = random.Random(seed)
        self._threads: list[threading.Thread] = []
        self._faults: list[Exception] = []

    def start(self, client: Callable[[str, list[int]], None], length: tuple[int, int]) -> None:
        """Runs a client in a thread of its own, with a prompt of a length in this range."""
        rid = f"soak-{self.seen['sent']}"
        ids = Task(self._draw.random()).batch(1, self._draw.randint(*length))[0].prompt_ids()
        self.seen["sent"] += 1

        def run() -> None:
            try:
                client(rid, ids)
            except Exception as fault:
                self._faults.append(fault)

        self._threads.append(threading.Thread(target=run))
        self._threads[-1].start()

    def wait(self) -> None:
        for thread in self._threads:
            thread.join()
        self._threads.clear()
        assert not self._faults, self._faults

    def complete(self, rid: str, ids: list[int]) -> None:
        """Stays to the end; some stay whole, for their length or because they ask for it."""
        options = {"enabled": False} if rid.endswith("7") else None
        reply = self.server.generate(ids, TOKENS, options, rid=rid)
        assert len(reply["output_ids"]) == TOKENS
        said = facts(reply)
        assert holds_its_budget(said, BUDGET), said
        self.seen["completed"] += 1

    def abort_waiting(self, rid: str, ids: list[int]) -> None:
        """Sent while the pool is full."""
        reply = self.server.abort_when("waiting", rid, generation(ids, TOKENS, None, rid=rid))
        reason = reply["meta_info"]["finish_reason"]
        self.seen["aborted_waiting"] += reason.get("message") == "Abort in waiting queue"

    def abort_mid_prefill(self, rid: str, ids: list[int]) -> None:
        self.server.abort_when("prefilling", rid, generation(ids, TOKENS, None, rid=rid))

    def abort_running(self, rid: str, ids: list[int]) -> None:
        for event in self.server.stream(ids, 100, rid=rid):
            if event["meta_info"]["completion_tokens"] == 2:
                self.server.abort(rid)


def test_soak(seed: int, figures: list[str]) -> None:
    with Server(*FLAGS, tokens=POOL, SGLANG_TEST_RETRACT="1", SGLANG_TEST_RETRACT_INTERVAL="8") as server:
        soak = Soak(server, seed)
        for _ in range(ROUNDS):
            for i in range(16):
                soak.start(soak.complete, (50, 250) if i % 8 == 0 else (320, 1490))
            for _ in range(3):
                soak.start(soak.abort_running, (320, 600))
            server.wait_for("waiting")
            for _ in range(3):
                soak.start(soak.abort_waiting, (320, 1490))
            soak.wait()
            for _ in range(2):
                # Alone on the server, so that it is this one that is cut into chunks.
                soak.start(soak.abort_mid_prefill, (1400, 1490))
                soak.wait()
            server.flush()
            assert server.laprox()["available_slots"] == POOL
        totals = server.laprox()
    figures.append(f"soak: {dict(soak.seen)}, prunes {totals['prunes']}, {totals['released']}")
    released = totals["released"]
    assert soak.seen["sent"] >= 300
    assert totals["pruned"] >= 0.6 * soak.seen["sent"]
    assert totals["prunes"] >= 20
    assert soak.seen["aborted_waiting"] >= 20
    for how in ("retracted", "aborted_mid_prefill", "aborted_running"):
        assert released[how] >= 20, how
