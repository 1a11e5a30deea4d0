"""300 requests against a pool that is too small, with conversations, retractions, aborts and flushes.

SGLang's own leak checks run after every step; a leak kills the server, and with it the test.
"""

import random
import threading
import time
from collections import Counter
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from pathlib import Path
from typing import Any

import pytest

from benchmarks.harness.client import facts, generation, holds_its_budget
from laprox_tools.needle import Task, Turn
from prompts import OPTED_OUT
from server import Server

pytestmark = pytest.mark.full

POOL = 2000
# On each of the tree's cores.
ROUNDS = 6
TOKENS = 12
BUDGET = 0.2
# What a view may have while there is room.
MOST = 0.6
FLAGS = (
    "--enable-laprox",
    *("--laprox-budget", str(BUDGET)),
    *("--laprox-budget-max", str(MOST)),
    *("--chunked-prefill-size", "128"),
)
RETRACT = {"SGLANG_TEST_RETRACT": "1", "SGLANG_TEST_RETRACT_INTERVAL": "8"}
# Twice the pool, so that it is full as well, and a storage of which every tenth access fails.
HOST_FLAGS = ("--enable-hierarchical-cache", "--hicache-ratio", "2", "--hicache-storage-backend", "file")
STORAGE_FAILS = {"SGLANG_TEST_HICACHE_BACKEND_RANDOM_FAILURE": "0.1"}
IDLE_SECONDS = 20
LENGTH = (280, 740)
# A prompt of so many tokens leaves no room for a view of it beside it.
TWIN = (1720, 1750)
# What requests that stay to the end ask for; what most of them ask for is left to the server.
WHOLE: list[tuple[str, int, Any]] = [
    ("disabled", TOKENS, OPTED_OUT),
    ("no_decode", 1, None),
]


class Soak:
    """Clients of one server, and what they saw."""

    def __init__(self, server: Server, seed: int, closes: bool) -> None:
        """
        Args:
            closes: most conversations that are over.
        """
        self.server, self.closes = server, closes
        self.seen: Counter[str] = Counter()
        self.draw = random.Random(seed)
        self._threads: list[threading.Thread] = []
        self._faults: list[Exception] = []

    def prompt(self, shortest: int, longest: int) -> list[int]:
        return Task(self.draw.random()).batch(1, self.draw.randint(shortest, longest))[0].prompt_ids()

    def start(self, client: Callable[[str], None], requests: int = 1) -> None:
        """Runs a client, which sends so many requests, in a thread of its own."""
        rid = f"soak-{self.seen['sent']}"
        self.seen["sent"] += requests

        def run() -> None:
            try:
                client(rid)
            except Exception as fault:
                self._faults.append(fault)

        self._threads.append(threading.Thread(target=run))
        self._threads[-1].start()

    def wait(self) -> None:
        for thread in self._threads:
            thread.join()
        self._threads.clear()
        assert not self._faults, self._faults

    def check(self, reply: dict[str, Any], tokens: int) -> dict[str, Any]:
        assert len(reply["output_ids"]) == tokens
        said = facts(reply)
        # What it was promised, whatever it had beside that.
        least, before = said["slots_least"], said["slots_before"]
        promised = {"slots_after": least, "budget_effective": least / before}
        assert holds_its_budget(said | promised, BUDGET), said
        assert least <= said["slots_after"] <= said["slots_first"] <= before, said
        self.seen["shrunk"] += said["shrinks"] > 0
        self.seen["completed"] += 1
        return said

    def complete(self, ids: list[int], tokens: int, options: Any, rid: str) -> None:
        self.check(self.server.generate(ids, tokens, options, rid=rid), tokens)

    def converse(self, turns: list[Turn], rid: str) -> None:
        """The last turn's prompt may have been evicted, or not."""
        before = 0
        for prompt, reply in self.server.talk(turns, TOKENS, session_id=rid):
            said = self.check(reply, TOKENS)
            assert said["pruned"] or said["reason"] == "no_room", said
            self.seen["turns that hit"] += before > 0 and said["cached_tokens"] >= before
            before = len(prompt)
        if self.closes and self.draw.random() < 0.7:
            assert self.server.post("/close_session", session_id=rid).status_code == 200

    def twins(self, ids: list[int], rid: str) -> None:
        """The same prompt twice; the first one stays whole, and still runs when the second one comes."""
        with ThreadPoolExecutor(1) as pool:
            events = self.server.stream(ids, 40, OPTED_OUT, rid=rid)
            next(events)
            second = pool.submit(self.complete, ids, TOKENS, None, rid + "-twin")
            assert len(list(events)[-1]["output_ids"]) == 40
            second.result()

    def abort_waiting(self, ids: list[int], rid: str) -> None:
        """Sent while the pool is full."""
        reply = self.server.abort_when("waiting", rid, generation(ids, TOKENS, None, rid=rid))
        reason = reply["meta_info"]["finish_reason"]
        self.seen["aborted_waiting"] += reason.get("message") == "Abort in waiting queue"

    def abort_mid_prefill(self, ids: list[int], rid: str) -> None:
        self.server.abort_when("prefilling", rid, generation(ids, TOKENS, None, rid=rid))

    def abort_running(self, ids: list[int], rid: str) -> None:
        for event in self.server.stream(ids, 100, rid=rid):
            if event["meta_info"]["completion_tokens"] == 2:
                self.server.abort(rid)

    def check_idle(self) -> None:
        """Every slot is free or in the tree once the server is idle, a moment after its last reply."""
        deadline = time.monotonic() + IDLE_SECONDS
        while True:
            said = self.server.laprox()
            busy = said["running"] or said["waiting"] or said["prefilling"]
            if not busy and said["available_slots"] + said["evictable_slots"] == POOL:
                return
            assert time.monotonic() < deadline, f"slots are missing: {said}"
            time.sleep(0.05)

    def run_round(self, number: int) -> None:
        for i in range(9):
            _, tokens, options = WHOLE[i] if i < len(WHOLE) else ("", TOKENS, None)
            ids = self.prompt(*((50, 200) if i == 8 else LENGTH))
            self.start(partial(self.complete, ids, tokens, options))
        for _ in range(2):
            turns = Task(self.draw.random()).conversation([self.draw.randint(24, 30), 4, 4])
            self.start(partial(self.converse, turns), requests=3)
        for _ in range(3):
            self.start(partial(self.abort_running, self.prompt(280, 400)))
        self.server.wait_for("waiting")
        for _ in range(3):
            self.start(partial(self.abort_waiting, self.prompt(*LENGTH)))
        self.wait()
        self.check_idle()
        for _ in range(2):
            # Alone on the server, so that it is this one that is cut into chunks.
            self.start(partial(self.abort_mid_prefill, self.prompt(700, 740)))
            self.wait()
        # Alone there is no room for its view but its own.
        self.start(partial(self.complete, self.prompt(*TWIN), TOKENS, None))
        self.wait()
        self.start(partial(self.twins, self.prompt(*TWIN)), requests=2)
        self.wait()
        self.check_idle()
        if number % 2:
            # In every other round the prompts of the last one are still in the tree, and are evicted.
            self.server.flush()
            assert self.server.laprox()["available_slots"] == POOL


# For the tree in Python alone.
SESSIONS = ("--enable-session-radix-cache",)


# The host tier, and how it is written to; or none.
@pytest.mark.parametrize(
    ("core", "kv_dtype", "host"),
    [("python", "fp8_e4m3", ""), ("rust", "auto", "write_back")],
)
def test_soak(seed: int, figures: list[str], core: str, kv_dtype: str, host: str, tmp_path: Path) -> None:
    environment = RETRACT | {"SGLANG_UNIFIED_RADIX_TREE_CORE_BACKEND": core}
    if host:
        environment |= STORAGE_FAILS | {"SGLANG_HICACHE_FILE_BACKEND_STORAGE_DIR": str(tmp_path)}
    tier = (*HOST_FLAGS, "--hicache-write-policy", host) if host else ()
    more = SESSIONS if core == "python" else ()
    with Server(*FLAGS, "--kv-cache-dtype", kv_dtype, *tier, *more, tokens=POOL, **environment) as server:
        soak = Soak(server, seed, bool(more))
        for number in range(ROUNDS):
            soak.run_round(number)
        totals = server.laprox()
    released, unpruned = totals["released"], totals["unpruned"]
    figures.append(
        f"soak, {core} core, {kv_dtype} KV, host tier {host or 'none'}: {dict(soak.seen)}, "
        f"prunes {totals['prunes']}, staged {totals['staged']}, left whole {unpruned}, {released}"
    )
    assert soak.seen["sent"] >= 150
    assert totals["pruned"] >= 0.5 * soak.seen["sent"]
    assert totals["prunes"] >= totals["pruned"]
    assert soak.seen["turns that hit"] and soak.seen["aborted_waiting"] >= 8
    assert totals["staged"] >= ROUNDS
    assert totals["shrinks"] >= soak.seen["shrunk"] >= 8 and totals["surplus_slots"] == 0
    assert (totals["cached_from_host"] > 0) == bool(host)
    assert {"disabled", "short", "no_decode", "no_room"} <= set(unpruned)
    for how in ("retracted", "aborted_mid_prefill", "aborted_running"):
        assert released[how] >= 8, how
