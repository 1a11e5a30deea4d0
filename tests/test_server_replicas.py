"""``--dp-size 2``: two schedulers, each with its model, pool, tree and totals, behind one address.

Its streams are incremental, and its KV events are published: no other server of the tests has either.
"""

import json
import random
import time
from collections import Counter
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import msgspec
import pytest
import requests
import zmq
from prometheus_client.parser import text_string_to_metric_families
from sglang.srt.disaggregation.kv_events import BlockStored, KVEventBatch

from benchmarks.harness.client import facts
from benchmarks.harness.server import cores, free_port
from laprox_sglang.report.endpoint import endpoint_of
from laprox_sglang.report.events import Pruned, Released, Start, decode
from laprox_tools.__main__ import main
from laprox_tools.needle import Task
from server import Server

pytestmark = pytest.mark.full

REPLICAS, REQUESTS, TOKENS, SECONDS = 2, 8, 8, 60


class Replicas:
    """A server, and for each replica who listens to its events and who to its KV events."""

    def __init__(self, server: Server, events: str, kv_events: str) -> None:
        self.server = server
        self._context = zmq.Context()
        self.events = [self._subscribe(endpoint_of(events, i)) for i in range(REPLICAS)]
        self.kv_events = [self._subscribe(endpoint_of(kv_events, i)) for i in range(REPLICAS)]

    def _subscribe(self, endpoint: str) -> zmq.Socket[bytes]:
        subscriber = self._context.socket(zmq.SUB)
        subscriber.subscribe(b"")
        subscriber.connect(endpoint)
        return subscriber

    def idle(self) -> list[dict[str, Any]]:
        """Totals of the idle replicas in their order, which is not that of ``/server_info``."""
        deadline = time.monotonic() + SECONDS
        while True:
            states = [state["laprox"] for state in self.server.info()["internal_states"]]
            if not any(said["running"] or said["waiting"] or said["pinned_slots"] for said in states):
                return sorted(states, key=lambda said: said["events"]["endpoint"])
            assert time.monotonic() < deadline, states
            time.sleep(0.05)

    def close(self) -> None:
        self._context.destroy(linger=0)


@pytest.fixture(scope="module")
def replicas() -> Iterator[Replicas]:
    events, kv_events = (f"tcp://127.0.0.1:{free_port()}" for _ in range(2))
    publisher = json.dumps({"publisher": "zmq", "endpoint": kv_events, "bind": True})
    flags = ("--enable-laprox", "--laprox-budget", "0.1", "--dp-size", str(REPLICAS), "--enable-metrics")
    flags = (*flags, "--laprox-events", events, "--kv-events-config", publisher)
    with Server(*flags, "--incremental-streaming-output", **cores(REPLICAS)) as server:
        found = Replicas(server, events, kv_events)
        yield found
        found.close()


def prompts(draw: random.Random) -> list[list[int]]:
    return [Task(draw.random()).batch(1, draw.randint(350, 600))[0].prompt_ids() for _ in range(REQUESTS)]


def heard(subscriber: zmq.Socket[bytes]) -> list[bytes]:
    messages = []
    while subscriber.poll(1000):
        messages.append(subscriber.recv_multipart()[-1])
    return messages


def test_every_replica_prunes_and_says_so(
    replicas: Replicas, seed: int, capsys: pytest.CaptureFixture[str]
) -> None:
    server, before = replicas.server, replicas.idle()
    asked = [
        {"ids": ids, "tokens": TOKENS, "routed_dp_rank": number % REPLICAS, "rid": f"{seed}-{number}"}
        for number, ids in enumerate(prompts(random.Random(seed)))
    ]
    # The last is asked of the other replica as well.
    asked.append(asked[-1] | {"routed_dp_rank": 0, "rid": f"{seed}-twin"})
    replies = server.generate_all(asked, at_once=len(asked))
    states = replicas.idle()
    assert [reply["meta_info"]["dp_rank"] for reply in replies] == [
        request["routed_dp_rank"] for request in asked
    ]
    assert all(facts(reply)["pruned"] for reply in replies)
    twins = [facts(reply) | {"cached_tokens": None} for reply in replies[-2:]]
    # What of it was cached depends on who else asked that replica.
    assert replies[-1]["output_ids"] == replies[-2]["output_ids"] and twins[0] == twins[1]

    served = Counter(request["routed_dp_rank"] for request in asked)
    assert [said["pruned"] for said in states] == [said["requests"] for said in states] == [5, 4]
    for rank, said in enumerate(states):
        told = [facts(reply) for reply in replies if reply["meta_info"]["dp_rank"] == rank]
        assert said["kept_tokens"] == sum(f["dense_tokens"] + f["slots_after"] for f in told)
        assert sum(said["kept_cells"]) == sum(f["kept_cells"] for f in told)
        assert said["available_slots"] + said["evictable_slots"] == server.info()["max_total_num_tokens"]

    # Events: a port for each, with its own requests.
    for rank, subscriber in enumerate(replicas.events):
        start, *events = map(decode, heard(subscriber))
        assert isinstance(start, Start)
        rids = {request["rid"] for request in asked if request["routed_dp_rank"] == rank}
        for kind in (Pruned, Released):
            assert {event.rid for event in events if isinstance(event, kind)} == rids

    # KV events: what they say is held is what the replica's tree has gained.
    for said, earlier, subscriber in zip(states, before, replicas.kv_events, strict=True):
        batches = [msgspec.msgpack.decode(data, type=KVEventBatch) for data in heard(subscriber)]
        stored = [event for batch in batches for event in batch.events if isinstance(event, BlockStored)]
        gained = said["evictable_slots"] - earlier["evictable_slots"]
        assert sum(len(event.block_hashes) for event in stored) == gained > 1000
        assert {batch.attn_dp_rank for batch in batches} == {replicas.kv_events.index(subscriber)}

    # Metrics by replica.
    page = requests.get(f"{server.url}/metrics", timeout=SECONDS).text
    counted: Counter[tuple[str, str]] = Counter()
    for family in text_string_to_metric_families(page):
        for sample in family.samples:
            if sample.name.startswith("laprox_") and "dp_rank" in sample.labels:
                counted[sample.name, sample.labels["dp_rank"]] += sample.value
    for rank, said in enumerate(states):
        assert counted["laprox_requests_total", str(rank)] == served[rank]
        assert counted["laprox_held_slots_total", str(rank)] == said["slots_held"]
        assert counted["laprox_events_total", str(rank)] == said["events"]["sent"] > 0

    # The command sums them up.
    assert main(["top", "--once", server.url]) == 0
    page = capsys.readouterr().out
    assert f", {REPLICAS} ranks" in page, page


def test_facts_come_once_in_every_kind_of_reply(replicas: Replicas, seed: int) -> None:
    """At once and by one scheduler, so that requests that end are sent out with requests that go on."""
    server, [ids, other, *_] = replicas.server, prompts(random.Random(seed + 1))
    # Longer than what SGLang sends of an unstreamed answer at a time, which is 50 tokens.
    asked: list[dict[str, Any]] = [
        {"ids": ids, "tokens": 120},
        {"ids": ids, "tokens": 60, "sampling": {"n": 2}},
        {"ids": ids, "tokens": 0},
        *({"ids": ids, "tokens": tokens} for tokens in (1, 2, 9, 30, 55)),
    ]
    with ThreadPoolExecutor(1) as pool:
        streamed = pool.submit(lambda: list(server.stream(other, 120, routed_dp_rank=0)))
        replies = server.generate_all([request | {"routed_dp_rank": 0} for request in asked], len(asked))
    events = streamed.result()
    assert len(events) > 3 and sum(len(event["output_ids"]) for event in events) == 120
    assert [len(event["meta_info"].get("laprox", ())) for event in events] == [0] * (len(events) - 1) + [1]
    long, both, none, *more = replies
    for reply in (long, *both, none, *more):
        assert len(reply["meta_info"]["laprox"]) == 1
    assert facts(none)["reason"] == facts(more[0])["reason"] == "no_decode"
    assert all(facts(reply)["pruned"] for reply in (events[-1], long, *both, *more[1:]))
    # A stream whose first output is its last.
    for tokens in (0, 1):
        [event] = server.stream(ids, tokens, routed_dp_rank=0)
        assert len(event["meta_info"]["laprox"]) == 1 and facts(event)["reason"] == "no_decode"
