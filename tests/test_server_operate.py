"""An operator's view of one server: totals, metrics, events, facts and the allocator tell the same story.

All along there is a subscriber that never reads. The last test kills the scheduler.
"""

import json
import os
import random
import re
import threading
import time
from collections import Counter
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import requests
import zmq
from prometheus_client.parser import text_string_to_metric_families

from benchmarks.harness.client import facts, generation
from laprox_sglang.options.refusals import UNTRIED_NAMES
from laprox_sglang.options.server import Config
from laprox_sglang.report.events import AnyEvent, Pruned, Released, Retracted, Start, decode
from laprox_sglang.views.plan import REASONS
from laprox_tools.needle import Task
from options import draw_options
from prompts import OPTED_OUT
from server import Server
from test_fuzz_options import fault_of, manager
from test_grafana import names

pytestmark = pytest.mark.full

POOL, BUDGET, CHUNK, TOKENS = 2600, 0.2, 128, 12
RETRACT = {"SGLANG_TEST_RETRACT": "1", "SGLANG_TEST_RETRACT_INTERVAL": "8"}
SECONDS = 120
FUZZED = 300
# A plugin of SGLang's. Once the file is there, the next prompt's cells are packed, and that is the end.
FATAL = """
import os, signal
import laprox_kernels

def load():
    pack = laprox_kernels.pack

    def last(*given):
        pack(*given)
        if os.path.exists(os.environ["LAPROX_TEST_FATAL"]):
            os.kill(os.getpid(), signal.SIGKILL)

    laprox_kernels.pack = last
"""
Series = dict[tuple[str, frozenset[tuple[str, str]]], float]
UNTESTED = "enable-lean-attention"


class Operator:
    """One server, a subscriber that reads and one that does not."""

    def __init__(self, server: Server, endpoint: str) -> None:
        self.server = server
        self._context = zmq.Context()
        self.subscriber = self._subscribe(endpoint)
        self._dead = self._subscribe(endpoint, hwm=1)

    def _subscribe(self, endpoint: str, hwm: int = 0) -> zmq.Socket[bytes]:
        subscriber = self._context.socket(zmq.SUB)
        subscriber.rcvhwm = hwm
        subscriber.subscribe(b"")
        subscriber.connect(endpoint)
        return subscriber

    def events(self) -> list[AnyEvent]:
        """All that came since the last time; the server must have sent them already."""
        heard = []
        while self.subscriber.poll(500):
            heard.append(decode(self.subscriber.recv()))
        return heard

    def page(self) -> str:
        return requests.get(f"{self.server.url}/metrics", timeout=SECONDS).text

    def metrics(self) -> Series:
        """Samples of ``/metrics`` by name and by the labels that are not SGLang's, of all processes."""
        stock = {"model_name", "engine_type", "tp_rank", "pp_rank", "moe_ep_rank"}
        found: Series = {}
        for family in text_string_to_metric_families(self.page()):
            for sample in family.samples:
                key = sample.name, frozenset((k, v) for k, v in sample.labels.items() if k not in stock)
                found[key] = found.get(key, 0.0) + sample.value
        return found

    def wait_idle(self) -> dict[str, Any]:
        """Totals of the idle server, which holds nothing but its cache."""
        deadline = time.monotonic() + SECONDS
        while True:
            said = self.server.laprox()
            busy = said["running"] or said["waiting"] or said["prefilling"]
            if not busy and not said["pinned_slots"]:
                return said
            assert time.monotonic() < deadline, f"slots are missing: {said}"
            time.sleep(0.05)

    def close(self) -> None:
        self._context.destroy(linger=0)


@pytest.fixture(scope="module")
def operator(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Operator]:
    endpoint = f"ipc://{tmp_path_factory.mktemp('events')}/events"
    flags = ("--chunked-prefill-size", str(CHUNK), "--enable-metrics", "--laprox-events", endpoint)
    # Nothing of it runs on a CPU: only what is said of it is looked at.
    flags += ("--enable-lean-attention", "--laprox-untested", UNTESTED)
    environment = RETRACT | fatal_plugin(tmp_path_factory.mktemp("fatal"))
    with Server(
        "--enable-laprox", "--laprox-budget", str(BUDGET), *flags, tokens=POOL, **environment
    ) as server:
        operator = Operator(server, endpoint)
        # From here on both subscribers are connected, and everything is heard.
        server.generate(prompt(random.Random(0), 300), 2)
        operator.wait_idle()
        yield operator
        operator.close()


def fatal_plugin(folder: Path) -> dict[str, str]:
    """Variables for a server that dies packing once ``LAPROX_TEST_FATAL`` is a file."""
    (folder / "fatal.py").write_text(FATAL)
    about = folder / "fatal-0.dist-info"
    about.mkdir()
    (about / "METADATA").write_text("Metadata-Version: 2.1\nName: fatal\nVersion: 0\n")
    (about / "entry_points.txt").write_text("[sglang.srt.plugins]\nfatal = fatal:load\n")
    path = os.pathsep.join(filter(None, [str(folder), os.environ.get("PYTHONPATH")]))
    return {"PYTHONPATH": path, "LAPROX_TEST_FATAL": str(folder / "now")}


def prompt(draw: random.Random, shortest: int, longest: int | None = None) -> list[int]:
    return Task(draw.random()).batch(1, draw.randint(shortest, longest or shortest))[0].prompt_ids()


def value(series: Series, name: str, **labels: str) -> float:
    return series[name, frozenset(labels.items())]


def mixed_load(server: Server, draw: random.Random) -> tuple[list[Any], list[str]]:
    """Requests of every fate; their replies, and the faults of those that were refused."""
    kinds: list[tuple[int, Any]] = [
        *((TOKENS, None) for _ in range(5)),
        *((TOKENS, {"budget": budget}) for budget in (40, 0.1, 120)),
        *((TOKENS, OPTED_OUT) for _ in range(2)),
        # More than its prompt has, which is not more than the server gives.
        (TOKENS, {"budget": 1000, "enabled": True}),
        (1, None),
    ]
    asked = [{"ids": prompt(draw, 320, 500), "tokens": n, "laprox": laprox} for n, laprox in kinds]
    # They hit what others have computed, and one is short.
    asked += [{"ids": asked[0]["ids"], "tokens": TOKENS}, {"ids": prompt(draw, 100), "tokens": TOKENS}]
    replies = server.generate_all(asked, at_once=len(asked))
    for event in server.stream(prompt(draw, 400), 60, rid="aborted-running"):
        if event["meta_info"]["completion_tokens"] == 2:
            server.abort("aborted-running")
        last = event
    replies.append(last)
    body = generation(prompt(draw, 900), TOKENS, None, rid="aborted-prefilling")
    replies.append(server.abort_when("prefilling", "aborted-prefilling", body))
    refused = {"value": {"budget": 7.5}, "malformed": {"budgets": 1}, "not_allowed": {"return_kept": True}}
    for options in refused.values():
        assert server.post("/generate", **generation([1, 2, 3], 2, options)).status_code == 400
    assert server.post("/generate", **generation([1], 2, None, session_params={"id": "x"})).status_code == 400
    return replies, [*refused, "unsupported"]


def test_all_tell_the_same_story(operator: Operator, seed: int, figures: list[str]) -> None:
    server, draw = operator.server, random.Random(seed)
    before = operator.wait_idle()
    heard = operator.events()
    assert isinstance(heard[0], Start) and heard[0].slots == POOL
    replies, faults = mixed_load(server, draw)
    wait_for_metrics(operator, before["requests"] + len(replies))
    series, after, events = operator.metrics(), operator.wait_idle(), operator.events()

    def grown(name: str) -> Any:
        return after[name] - before[name]

    # Facts against totals.
    said = [f for reply in replies if (f := (reply["meta_info"].get("laprox") or [None])[-1]) is not None]
    aborted = len(replies) - len(said)
    pruned = [f for f in said if f["pruned"]]
    assert grown("requests") == len(replies) and grown("pruned") == len(pruned) > 5
    reasons = Counter(f["reason"] for f in said if not f["pruned"]) + Counter({"aborted": aborted})
    assert Counter(after["unpruned"]) - Counter(before["unpruned"]) == reasons
    assert {"disabled", "short", "no_decode", "aborted"} <= set(reasons)
    assert max(f["budget_effective"] for f in pruned) < 1.1 * BUDGET
    for name in ("prompt_tokens", "cached_tokens"):
        assert grown(name) == sum(f[name] for f in said), name
    kept = sum(f["dense_tokens"] + f["slots_after"] * f["pruned"] for f in said)
    assert grown("kept_tokens") == kept < grown("prompt_tokens")
    cells = [b - a for a, b in zip(before["kept_cells"], after["kept_cells"], strict=True)]
    assert sum(cells) == sum(f["kept_cells"] for f in pruned) and len(cells) == 8
    assert grown("scored_cells") == 2 * sum(f["slots_before"] for f in pruned)
    erased = sum(round(f.get("erased_share", 0.0) * f["slots_before"]) for f in pruned)
    assert grown("viewed_tokens") == sum(f["slots_before"] for f in pruned)
    assert grown("erased_tokens") == erased
    retractions = sum(reply["meta_info"].get("num_retractions", 0) for reply in replies)
    released = Counter(after["released"]) - Counter(before["released"])
    assert released["retracted"] == retractions > 0
    assert released["aborted_running"] == released["aborted_mid_prefill"] == 1
    assert Counter(after["refused"]) == Counter(faults)

    # Events against totals.
    kinds = {kind: [e for e in events if isinstance(e, kind)] for kind in (Pruned, Retracted, Released)}
    assert [event.seq for event in events] == list(range(events[0].seq, after["events"]["sent"] + 1))
    assert len(events) == after["events"]["sent"] - before["events"]["sent"]
    assert after["events"]["overflows"] == 0
    assert len(kinds[Pruned]) == grown("prunes")
    assert sum(event.freed for event in kinds[Pruned]) == grown("slots_freed")
    assert len(kinds[Retracted]) == retractions
    ended = Counter(event.how for event in kinds[Released]) + Counter(retracted=retractions)
    assert ended == released
    names_of = {reply["meta_info"]["id"] for reply in replies if facts_of(reply).get("pruned")}
    assert names_of <= {event.rid for event in kinds[Pruned]}

    # Metrics against totals and the allocator.
    check_metrics(series, after)
    check_metrics(operator.metrics(), after)
    assert after["available_slots"] + after["evictable_slots"] == POOL
    assert value(series, "sglang:max_total_num_tokens") == POOL
    assert names() <= {name for name, _ in series}
    figures.append(
        f"{len(replies)} requests told alike by facts, totals, metrics and {len(events)} events: "
        f"{len(pruned)} pruned, whole or aborted {dict(reasons)}, {retractions} retractions"
    )


def facts_of(reply: dict[str, Any]) -> dict[str, Any]:
    return (reply["meta_info"].get("laprox") or [None])[-1] or {}


def test_what_was_not_tried_is_said(operator: Operator) -> None:
    assert operator.server.laprox()["untested"] == [UNTESTED]
    log = operator.server.launch.log.read_text()
    assert len(re.findall(rf"LaProx was not tried with --{UNTESTED}: .*Please report", log)) == 1


def wait_for_metrics(operator: Operator, ended: int) -> None:
    """Nobody asks the scheduler for its totals meanwhile: what it says by itself must come up to date."""
    deadline = time.monotonic() + SECONDS
    while True:
        series = operator.metrics()
        counted = sum(number for (name, _), number in series.items() if name == "laprox_requests_total")
        # The last one has been answered, and may not have given back its slots.
        if counted == ended and value(series, "laprox_slots", state="pinned") == 0:
            return
        assert time.monotonic() < deadline, f"{counted} of {ended} requests are in /metrics"
        time.sleep(0.05)


def check_metrics(series: Series, totals: dict[str, Any]) -> None:
    """Compares every metric with the totals of ``/server_info``."""
    expected: dict[tuple[str, frozenset[tuple[str, str]]], float] = {}

    def expect(name: str, number: float, **labels: str) -> None:
        expected[f"laprox_{name}", frozenset(labels.items())] = number

    expect("requests_total", totals["pruned"], outcome="pruned", reason="")
    expect("requests_total", totals["unpruned"].get("aborted", 0), outcome="aborted", reason="")
    for reason in REASONS:
        expect("requests_total", totals["unpruned"].get(reason, 0), outcome="whole", reason=reason)
    expect("prompt_tokens_total", totals["cached_tokens"], source="cached")
    expect("prompt_tokens_total", totals["prompt_tokens"] - totals["cached_tokens"], source="computed")
    far = {tier: totals[f"cached_from_{tier}"] for tier in ("host", "storage")}
    for tier, tokens in ({"gpu": totals["cached_tokens"] - sum(far.values())} | far).items():
        expect("cached_tokens_total", tokens, tier=tier)
    for layer, cells in enumerate(totals["kept_cells"]):
        expect("kept_cells_total", cells, layer=str(layer))
    for how in ("finished", "retracted", "aborted_running", "aborted_mid_prefill"):
        expect("released_requests_total", totals["released"].get(how, 0), how=how)
    for stage in ("score", "select", "pack", "shrink"):
        expect("stage_seconds_total", totals["stage_seconds"][stage], stage=stage)
    for state in ("pinned", "evictable", "available"):
        expect("slots", totals[f"{state}_slots"], state=state)
    expect("host_slots", totals["host_slots"] - totals["host_available_slots"], state="used")
    expect("host_slots", totals["host_available_slots"], state="available")
    for fault in ("malformed", "value", "not_allowed", "unsupported"):
        expect("refused_requests_total", totals["refused"].get(fault, 0), fault=fault)
    for name, key in {
        "kept_tokens": "kept_tokens", "held_slots": "slots_held", "scored_cells": "scored_cells",
        "viewed_tokens": "viewed_tokens", "erased_tokens": "erased_tokens",
        "prunes": "prunes", "staged_prunes": "staged", "taken_slots": "slots_taken",
        "shrinks": "shrinks", "shrunk_slots": "shrunk_slots",
    }.items():  # fmt: skip
        expect(f"{name}_total", totals[key])
    expect("freed_slots_total", totals["slots_freed"] + totals["slots_taken"])
    expect("events_total", totals["events"]["sent"])
    expect("event_overflows_total", totals["events"]["overflows"])
    expect("views", totals["views"])
    expect("view_slots", totals["view_slots"])
    expect("surplus_slots", totals["surplus_slots"])
    expect("saved_bytes", totals["spared_slots"] * totals["slot_bytes"])
    for flag in UNTRIED_NAMES:
        expect("untested", float(flag in totals["untested"]), flag=flag)
    ours = {key: number for key, number in series.items() if key[0].startswith("laprox_")}
    assert ours == pytest.approx(expected)
    counts = {key: number for key, number in expected.items() if "seconds" not in key[0]}
    assert {key: ours[key] for key in counts} == counts, "whole numbers are exact"
    # No view of this server may shrink.
    assert all((seconds > 0) == (stage != "shrink") for stage, seconds in totals["stage_seconds"].items())


def test_a_view_that_is_read_is_in_the_gauges(operator: Operator, seed: int) -> None:
    server = operator.server
    server.flush()
    for event in server.stream(prompt(random.Random(seed), 600), 40):
        if event["meta_info"]["completion_tokens"] == 3:
            totals, series = server.laprox(), operator.metrics()
        last = event
    said = facts(last)
    assert (totals["views"], totals["view_slots"]) == (1, said["slots_after"])
    spared = said["slots_before"] - said["slots_after"]
    assert value(series, "laprox_saved_bytes") == spared * totals["slot_bytes"]
    assert value(series, "laprox_views") == 1
    # What runs pins its view and its tail; the exact prompt is cache.
    assert said["slots_after"] < value(series, "laprox_slots", state="pinned") < said["slots_after"] + 40
    assert value(series, "laprox_slots", state="evictable") == said["slots_before"]
    assert operator.wait_idle()["views"] == operator.wait_idle()["spared_slots"] == 0


def sendable(options: Any) -> bool:
    """Whether JSON can say it, in numbers that every server reads alike."""
    try:
        return not re.search(r"\d{19}", json.dumps(options, allow_nan=False))
    except (ValueError, RecursionError):
        return False


def test_random_options_are_served_or_a_clean_400(operator: Operator, seed: int, figures: list[str]) -> None:
    server, draw = operator.server, random.Random(seed)
    before = operator.wait_idle()
    # The same check as in the server says what is to be expected of it.
    front = manager(Config(budget=BUDGET))
    texts = [prompt(draw, 300) for _ in range(4)]
    asked: list[Any] = []
    while len(asked) < FUZZED:
        options = draw_options(draw)
        if isinstance(options, dict) and sendable(options):
            asked.append(options.get("laprox"))

    def send(options: Any) -> bool:
        body = generation(texts[id(options) % 4], 2, None, sampling={"custom_params": {"laprox": options}})
        response = server.post("/generate", **body)
        fault = fault_of(front, {"laprox": options})
        assert response.status_code == (400 if fault else 200), (options, response.text)
        if fault:
            assert response.json()["error"]["message"] == fault
        else:
            assert len(response.json()["output_ids"]) == 2
        return fault is None

    with ThreadPoolExecutor(8) as pool:
        served = sum(pool.map(send, asked))
    after = operator.wait_idle()
    assert after["requests"] - before["requests"] == served > 20
    refused = sum(after["refused"].values()) - sum(before["refused"].values())
    assert refused == FUZZED - served > 20
    figures.append(f"{FUZZED} random options over HTTP: {served} served, {refused} clean 400s")


def test_who_never_reads_changes_no_output(operator: Operator, seed: int) -> None:
    server, ids = operator.server, prompt(random.Random(seed + 1), 500)
    server.flush()
    deaf = server.generate(ids, TOKENS)
    operator._dead.close(linger=0)
    server.flush()
    alone = server.generate(ids, TOKENS)
    assert facts(deaf)["pruned"] and facts(deaf) == facts(alone)
    assert deaf["output_ids"] == alone["output_ids"]


def test_a_scheduler_that_is_killed_while_it_packs_leaves_nothing_behind(
    operator: Operator, seed: int
) -> None:
    server, draw = operator.server, random.Random(seed)
    endpoint = Path(server.laprox()["config"]["events"].removeprefix("ipc://"))
    fatal = Path(server.launch.environment["LAPROX_TEST_FATAL"])
    operator.events()

    def ask(ids: list[int]) -> None:
        # Whoever waits for a reply is told by the connection, or by an error.
        with suppress(requests.RequestException, json.JSONDecodeError):
            server.post("/generate", **generation(ids, 100, None))

    threads = [threading.Thread(target=partial(ask, prompt(draw, 600))) for _ in range(6)]
    for thread in threads:
        thread.start()
    # Some have their views, others are being computed; the cells of the next one are packed, and not told.
    assert operator.subscriber.poll(SECONDS * 1000), "nothing was pruned"
    fatal.touch()
    deadline = time.monotonic() + SECONDS
    while server.code is None:
        assert time.monotonic() < deadline, "the server goes on without its scheduler"
        time.sleep(0.1)
    for thread in threads:
        thread.join()
    assert endpoint.is_socket(), "this is what must not stop the next one"
    operator.events()
    server.kill()
    fatal.unlink()
    # The same port, and the same endpoint.
    server.start()
    server.wait()
    reply = server.generate(prompt(draw, 600), TOKENS)
    assert facts(reply)["pruned"]
    assert operator.wait_idle()["requests"] == 1
    heard = operator.events()
    assert isinstance(heard[0], Start) and [type(e) for e in heard[-2:]] == [Pruned, Released]
