"""Events: what a subscriber gets, what a slow one misses, and where they may be published."""

import os
import select
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import msgspec
import pytest
import zmq

from laprox_sglang.options.values import ConfigError
from laprox_sglang.report.endpoint import check_endpoint
from laprox_sglang.report.events import (
    LONGEST_RID,
    TOPIC,
    AnyEvent,
    Event,
    Pruned,
    Publisher,
    Released,
    Retracted,
    Start,
    decode,
)

START: dict[str, Any] = {
    "versions": {},
    "model": "m",
    "slots": 9,
    "slot_bytes": 8,
    "layers": 2,
    "heads": 2,
    "config": {},
}
PRUNED = {"tokens": 1000, "dense": 10, "slots": 100, "freed": 890}
SECONDS = 20


@pytest.fixture
def context() -> Iterator[zmq.Context]:
    context = zmq.Context()
    yield context
    context.destroy(linger=0)


@pytest.fixture
def endpoint(tmp_path: Path) -> str:
    return f"ipc://{tmp_path}/events"


def subscribe(context: zmq.Context, endpoint: str, topic: str = "", hwm: int = 0) -> zmq.Socket:
    subscriber = context.socket(zmq.SUB)
    subscriber.rcvhwm, subscriber.rcvtimeo = hwm, SECONDS * 1000
    subscriber.subscribe(topic.encode())
    subscriber.connect(endpoint)
    return subscriber


def publish_until_heard(events: Publisher, subscriber: zmq.Socket) -> list[AnyEvent]:
    """Publishes until ``subscriber`` has heard something, which tells that it is connected."""
    deadline = time.monotonic() + SECONDS
    while not subscriber.poll(10):
        assert time.monotonic() < deadline
        events.publish(Pruned, "warm", **PRUNED)
    heard = []
    while subscriber.poll(100):
        heard.append(decode(subscriber.recv()))
    return heard


def test_a_subscriber_is_told_what_the_server_is_and_then_what_happens(context, endpoint) -> None:
    events = Publisher(endpoint)
    events.start(Start(seq=0, time=time.time(), **START))
    subscriber = subscribe(context, endpoint)
    first = publish_until_heard(events, subscriber)[0]
    assert isinstance(first, Start) and first.seq == 0 and first.slots == 9
    events.publish(Pruned, "a", **PRUNED)
    events.publish(Retracted, "a", slots=100, held=110)
    events.publish(Released, "b" * 1000, how="finished", reason="short", slots=0, held=3)
    heard = [decode(subscriber.recv()) for _ in range(3)]
    assert [type(event) for event in heard] == [Pruned, Retracted, Released]
    assert [event.seq for event in heard] == [events.sent - 2, events.sent - 1, events.sent]
    assert heard[0].rid == "a" and heard[0].slots == 100 and abs(heard[0].time - time.time()) < 60
    assert heard[2].rid == "b" * LONGEST_RID
    events.close()


def test_a_subscriber_gets_what_it_asked_for(context, endpoint) -> None:
    events = Publisher(endpoint)
    events.start(Start(seq=0, time=time.time(), **START))
    every, some = subscribe(context, endpoint), subscribe(context, endpoint, TOPIC + "retracted")
    publish_until_heard(events, every)
    events.publish(Pruned, "a", **PRUNED)
    events.publish(Retracted, "a", slots=1, held=1)
    assert isinstance(decode(some.recv()), Retracted)
    events.close()


def test_no_event_has_room_for_tokens_or_texts() -> None:
    allowed = {"rid", "how", "reason", "model", "versions", "config"}
    for kind in Event.__subclasses__():
        for field in msgspec.structs.fields(kind):
            assert field.type in (int, float) or field.name in allowed, field.name


@pytest.mark.parametrize(
    "message", [b"", b"laprox/2/pruned\0\x80", b"laprox/1/pruned\0\x80", b"laprox/1/pruned\0\xff"]
)
def test_what_is_no_event_is_refused(message) -> None:
    with pytest.raises((ValueError, msgspec.MsgspecError)):
        decode(message)


def test_who_never_reads_costs_the_others_nothing(context, endpoint) -> None:
    waiting, total = 100, 20_000
    events = Publisher(endpoint, waiting)
    events.start(Start(seq=0, time=time.time(), **START))
    dead, good = subscribe(context, endpoint, hwm=1), subscribe(context, endpoint)
    publish_until_heard(events, dead)
    publish_until_heard(events, good)
    first, heard = events.sent + 1, []
    for number in range(total):
        events.publish(Pruned, "r" * 30, **PRUNED)
        if number % 50 == 49:
            while len(heard) < number + 1:
                heard.append(decode(good.recv()).seq)
    assert heard == list(range(first, first + total))
    assert events.overflows >= 1
    # Whoever reads again sees what it has missed; at most the queues on both sides were kept.
    missed_behind = [decode(dead.recv()).seq for _ in range(waiting)]
    assert missed_behind[-1] < first + total - 1
    events.close()


def test_no_id_that_a_client_gives_stops_the_scheduler(context, endpoint) -> None:
    """Half of a character, of a program around an Engine, is in no message."""
    events = Publisher(endpoint)
    subscriber = subscribe(context, endpoint)
    publish_until_heard(events, subscriber)
    for rid in ("\ud800", "a" * (LONGEST_RID - 1) + "\U0001f600", "\0\n"):
        events.publish(Released, rid, how="finished", reason=None, slots=0, held=1)
        assert decode(subscriber.recv()).rid == rid.encode(errors="replace").decode()
    events.close()


SUBSCRIBER = """
import sys, zmq
socket = zmq.Context().socket(zmq.SUB)
socket.subscribe(b"")
socket.connect(sys.argv[1])
while True:
    socket.recv()
    print("heard", flush=True)
"""


def test_a_subscriber_that_hangs_and_then_dies_costs_the_others_nothing(context) -> None:
    """A process of its own, over TCP: its machine has taken what fits, and then takes nothing."""
    events = Publisher("tcp://127.0.0.1:*", 100)
    events.start(Start(seq=0, time=time.time(), **START))
    endpoint = events._socket.last_endpoint.decode()
    good = subscribe(context, endpoint)
    publish_until_heard(events, good)
    arguments = [sys.executable, "-c", SUBSCRIBER, endpoint]
    with subprocess.Popen(arguments, stdout=subprocess.PIPE) as other:
        try:
            deadline = time.monotonic() + SECONDS
            while not select.select([other.stdout], [], [], 0.01)[0]:
                assert time.monotonic() < deadline
                events.publish(Pruned, "warm", **PRUNED)
            other.send_signal(signal.SIGSTOP)
            while good.poll(100):
                good.recv()
            first = events.sent + 1
            while not events.overflows:
                assert time.monotonic() < deadline, "all that was said has been taken by who hangs"
                publish_and_hear(events, good)
        finally:
            other.kill()
    publish_and_hear(events, good)
    assert events.sent > first
    late = subscribe(context, endpoint)
    assert isinstance(publish_until_heard(events, late)[0], Start)
    events.close()


def publish_and_hear(events: Publisher, subscriber: zmq.Socket, count: int = 50) -> None:
    first = events.sent + 1
    for _ in range(count):
        events.publish(Pruned, "r" * LONGEST_RID, **PRUNED)
    heard = [decode(subscriber.recv()).seq for _ in range(count)]
    assert heard == list(range(first, first + count))


def test_an_endpoint_that_is_taken_is_refused_before_anything_is_loaded(tmp_path) -> None:
    with socket.socket() as other:
        other.bind(("127.0.0.1", 0))
        other.listen()
        with pytest.raises(ConfigError, match=r"cannot be had .*in use"):
            check_endpoint(f"tcp://127.0.0.1:{other.getsockname()[1]}", False)
    path = tmp_path / "events"
    with socket.socket(socket.AF_UNIX) as other:
        other.bind(str(path))
        other.listen()
        with pytest.raises(ConfigError, match="a server listens there"):
            check_endpoint(f"ipc://{path}", False)


def test_what_a_killed_server_left_behind_is_in_nobodys_way(tmp_path) -> None:
    path = tmp_path / "events"
    with socket.socket(socket.AF_UNIX) as dead:
        dead.bind(str(path))
    assert path.exists()
    check_endpoint(f"ipc://{path}", False)
    Publisher(f"ipc://{path}").close()


def test_no_file_is_removed_for_an_endpoint(tmp_path) -> None:
    path = tmp_path / "precious"
    path.write_text("data")
    with pytest.raises(ConfigError, match="is no socket"):
        check_endpoint(f"ipc://{path}", False)
    assert path.read_text() == "data"


@pytest.mark.parametrize(
    "endpoint, message",
    [
        ("tcp://0.0.0.0:5557", "other machines"),
        ("tcp://10.1.2.3:5557", "other machines"),
        ("tcp://[::]:5557", "other machines"),
        ("tcp://localhost:5557", "no IP address"),
        ("tcp://*:5557", "no IP address"),
        ("tcp://127.0.0.1", "no IP address"),
        ("tcp://127.0.0.1:0", "no IP address"),
        ("tcp://127.0.0.1:65536", "no IP address"),
        ("tcp://127.0.0.1:*", "no IP address"),
        ("tcp://127.0.0.1:55571234", "no IP address"),
        ("tcp://127.0.0.1:0655350", "no IP address"),
        ("udp://127.0.0.1:5557", "no address for events"),
        ("inproc://x", "no address for events"),
        ("ipc://relative", "no address for events"),
        ("ipc://@abstract", "no address for events"),
        ("ipc:///tmp/a\0b", "no address for events"),
        ("ipc:///tmp/\ud800", "no address for events"),
        ("5557", "no address for events"),
        ("", "no address for events"),
        ("x\n" * 9999, "no address for events"),
        ("ipc:///" + "x" * 200, "longer than"),
        ("ipc:///nowhere/at/all", "nothing can be made"),
    ],
)
def test_endpoints_that_are_refused(endpoint, message) -> None:
    with pytest.raises(ConfigError, match=message) as error:
        check_endpoint(endpoint, False)
    assert str(error.value).isprintable() and len(str(error.value)) < 400


def test_other_machines_may_listen_where_the_server_was_told_so() -> None:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    check_endpoint(f"tcp://0.0.0.0:{port}", True)
    check_endpoint(f"tcp://127.0.0.1:{port}", False)


def test_an_address_of_ipv6_is_served_as_well(context) -> None:
    with socket.socket(socket.AF_INET6) as free:
        try:
            free.bind(("::1", 0))
        except OSError as error:
            pytest.skip(f"this machine has no IPv6: {error}")
        endpoint = f"tcp://[::1]:{free.getsockname()[1]}"
    check_endpoint(endpoint, False)
    events = Publisher(endpoint)
    subscriber = context.socket(zmq.SUB)
    subscriber.ipv6 = True
    subscriber.subscribe(b"")
    subscriber.connect(endpoint)
    assert publish_until_heard(events, subscriber)
    events.close()


def test_two_publishers_do_not_share_an_endpoint() -> None:
    first = Publisher("tcp://127.0.0.1:*")
    with pytest.raises(zmq.ZMQError, match="in use"):
        Publisher(first._socket.last_endpoint.decode())
    first.close()


def test_publishing_writes_no_file(tmp_path, endpoint) -> None:
    events = Publisher(endpoint)
    events.start(Start(seq=0, time=time.time(), **START))
    for _ in range(100):
        events.publish(Pruned, "a", **PRUNED)
    events.close()
    assert os.listdir(tmp_path) == ["events"] and not (tmp_path / "events").stat().st_size
