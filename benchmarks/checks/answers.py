"""Checks of what a server answers: exact answers on long prompts, and the ids of stock SGLang."""

import random
from concurrent.futures import ThreadPoolExecutor
from itertools import chain
from operator import eq
from typing import Any

from benchmarks.checks.rows import Row, per_cent
from benchmarks.checks.servers import Asked, Server, is_exact, pool, pruning
from benchmarks.harness.client import facts
from laprox_tools.needle import DIGITS, Task, Turn

STOCK = "stock"
SEED = 0
# SGLang's memory checks, after every step.
STRICT = {"SGLANG_ENABLE_STRICT_MEM_CHECK_DURING_BUSY": "1", "SGLANG_CHECK_KV_PAGE_INVARIANTS": "1"}


class Needles:
    """Exact answers of one server: every prompt pruned, then every prompt whole.

    So decode graphs of both families answer, and the memory checks see both.
    """

    NAME, PRUNED = "needles", "0.1"
    POINTS = 3

    def __init__(self, prompts: int, length: int, at_once: int, slots: int) -> None:
        self._length, self._at_once, self._pool = length, at_once, pool(slots)
        self._samples = Task(SEED).batch(prompts, length)
        self._pruned: list[Any] = []
        self._whole: list[Any] = []
        self._slots: tuple[int, int] = (0, 0)

    def servers(self) -> dict[str, Asked]:
        return {self.NAME: Asked(self.ask, [*self._pool, *pruning(self.PRUNED)], STRICT)}

    def ask(self, server: Server) -> None:
        for replies, options in ((self._pruned, {}), (self._whole, {"enabled": False})):
            more = {"tokens": 4 * DIGITS, "laprox": options}
            asked = [{"ids": sample.prompt_ids(), **more} for sample in self._samples]
            replies += server.generate_all(asked, self._at_once)
            server.flush()
        totals = server.laprox()
        self._slots = totals["available_slots"], totals["slots"]

    def rows(self) -> list[Row]:
        both = self._pruned, self._whole
        pruned, whole = (per_cent(map(is_exact, replies, self._samples)) for replies in both)
        right, wrong = (per_cent(facts(reply)["pruned"] for reply in replies) for replies in both)
        size = f"{len(self._samples)} prompts of {self._length:,} tokens"
        available, slots = self._slots
        return [
            Row(self.NAME, f"exact answers, unpruned, {size}", whole, "%"),
            Row(self.NAME, "exact answers, 10 %", pruned, "%", least=whole - self.POINTS),
            Row(self.NAME, "prompts pruned, of those that should be", right, "%", least=100),
            Row(self.NAME, "prompts pruned, of those that should not", wrong, "%", most=0),
            Row(self.NAME, "slots missing after a flush", slots - available, most=0),
        ]


class Conversations:
    """Exact answers of conversations at 5 %, whose every turn asks about the first turn or a middle one."""

    NAME, PRUNED = "conversations", "0.05"
    POINTS = 3

    def __init__(self, conversations: int, sentences: list[int], at_once: int, slots: int) -> None:
        """
        Args:
            sentences: of 12 words, that each turn tells before it asks.
        """
        task = Task(SEED)
        self._turns, self._at_once, self._pool = len(sentences), at_once, pool(slots)
        self._talks = [task.conversation(sentences, few_words=i % 2 == 0) for i in range(conversations)]
        self._replies: dict[str, list[list[Any]]] = {}

    def servers(self) -> dict[str, Asked]:
        pruned = Asked(self.ask, [*self._pool, *pruning(self.PRUNED)])
        return {STOCK: Asked(self.ask, self._pool), self.PRUNED: pruned}

    def ask(self, server: Server) -> None:
        def talk(turns: list[Turn]) -> list[Any]:
            return [reply for _, reply in server.talk(turns, DIGITS)]

        with ThreadPoolExecutor(self._at_once) as pool:
            self._replies[server.name] = list(pool.map(talk, self._talks))

    def rows(self) -> list[Row]:
        exact = {
            name: [
                [reply["output_ids"] == turn.answer_ids for reply, turn in zip(talk, asked, strict=True)]
                for talk, asked in zip(talks, self._talks, strict=True)
            ]
            for name, talks in self._replies.items()
        }
        pruned = per_cent(facts(reply)["pruned"] for talk in self._replies[self.PRUNED] for reply in talk)
        whole, ours = (per_cent(chain.from_iterable(exact[name])) for name in (STOCK, self.PRUNED))
        size = f"{len(self._talks)} conversations of {self._turns} turns"
        rows = [
            Row(self.NAME, f"exact answers, stock, {size}", whole, "%"),
            Row(self.NAME, "exact answers, 5 %", ours, "%", least=whole - self.POINTS),
            Row(self.NAME, "turns with a view", pruned, "%", least=100),
        ]
        for turn in range(self._turns):
            by_server = {name: per_cent(talk[turn] for talk in talks) for name, talks in exact.items()}
            rows.append(Row(self.NAME, f"turn {turn + 1}, stock", by_server[STOCK], "%"))
            rows.append(Row(self.NAME, f"turn {turn + 1}, 5 %", by_server[self.PRUNED], "%"))
        return rows


class Identity:
    """Token ids of LaProx servers against those of stock."""

    NAME = "identity"
    WHOLE = "1.0"
    # At 600 tokens the least that is less than all of them: packing and the ragged kernel run for real.
    ALMOST = "0.998"
    AT_ONCE = "stock, all at once"
    POINTS = 1
    # A pruned prompt runs other kernels, and has lost one token in 500.
    ALMOST_POINTS = 3

    def __init__(self, prompts: int, shortest: int, longest: int, tokens: int, slots: int) -> None:
        self._tokens, self._pool = tokens, pool(slots)
        draw = random.Random(SEED)
        lengths = [draw.randint(shortest, longest) for _ in range(prompts)]
        self._samples = [Task(draw.getrandbits(32)).batch(1, length)[0] for length in lengths]
        self._replies: dict[str, list[Any]] = {}

    def servers(self) -> dict[str, Asked]:
        found = {STOCK: Asked(self.ask, self._pool)}
        for budget in (self.WHOLE, self.ALMOST):
            found[budget] = Asked(self.ask, [*self._pool, *pruning(budget)])
        return found

    def ask(self, server: Server) -> None:
        asked = [{"ids": sample.prompt_ids(), "tokens": self._tokens} for sample in self._samples]
        self._replies[server.name] = server.generate_all(asked, 1)
        server.flush()
        if server.name == STOCK:
            self._replies[self.AT_ONCE] = server.generate_all(asked, len(asked))
            server.flush()

    def equal(self, name: str) -> float:
        """Per cent of the ids that are those of stock, one by one, in the same place."""
        return per_cent(map(eq, self._ids(name), self._ids(STOCK)))

    def _ids(self, name: str) -> list[int]:
        outputs = [reply["output_ids"] for reply in self._replies[name]]
        assert all(len(ids) == self._tokens for ids in outputs), "a reply is not as long as it was asked for"
        return [number for ids in outputs for number in ids]

    def rows(self) -> list[Row]:
        size = f"{len(self._samples)} prompts, {self._tokens} tokens"
        stock = self.equal(self.AT_ONCE)
        rows = [
            Row(self.NAME, f"ids as stock one by one: stock, all at once, {size}", stock, "%"),
            Row(self.NAME, "the same: budget 1.0", self.equal(self.WHOLE), "%", least=stock - self.POINTS),
            Row(
                *(self.NAME, f"the same: budget {self.ALMOST}", self.equal(self.ALMOST), "%"),
                least=stock - self.ALMOST_POINTS,
            ),
        ]
        exact = {
            name: per_cent(map(is_exact, replies, self._samples)) for name, replies in self._replies.items()
        }
        for name, share in exact.items():
            least = exact[STOCK] - self.ALMOST_POINTS if name == self.ALMOST else None
            rows.append(Row(self.NAME, f"exact answers: {name}", share, "%", least=least))
        for name, pruned in ((self.WHOLE, 0), (self.ALMOST, 100)):
            said = per_cent(facts(reply)["pruned"] for reply in self._replies[name])
            rows.append(Row(self.NAME, f"prompts pruned: {name}", said, "%", least=pruned, most=pruned))
        return rows
