"""Events over ZeroMQ: what happens to requests, while it happens. See ``docs/events.md``.

A message is one frame: its topic, a zero byte, and a MessagePack map. The topic carries the schema's
version and the event's name, so that a subscriber gets what it knows. Nothing here holds token ids or texts.
"""

import time
from collections.abc import Callable

import msgspec
import zmq

SCHEMA = 1
TOPIC = f"laprox/{SCHEMA}/"
# How many events may wait for one subscriber; each has about 300 bytes.
WAITING = 10_000
# A client chooses the id of its request, of any length, so it is cut. A program that uses an Engine may even
# put lone surrogates into it, which cannot be encoded; over HTTP SGLang refuses those.
LONGEST_RID = 128


class Event(msgspec.Struct, frozen=True, kw_only=True):
    """
    Attributes:
        seq: number of the event since the server's start; a gap is what this subscriber missed.
        time: seconds since 1970.
    """

    seq: int
    time: float


class Start(Event, frozen=True, tag="start"):
    """What the server is; each subscriber gets it first, whenever it comes.

    Attributes:
        seq: 0.
        time: of the server's start.
        versions: of the packages laprox-sglang and sglang.
        slots, slot_bytes: size of the KV pool, and of a slot, which is one token in all layers, on all ranks.
        heads: KV heads of a layer, on all ranks.
        config: LaProx's options.
    """

    versions: dict[str, str]
    model: str
    slots: int
    slot_bytes: int
    layers: int
    heads: int
    config: dict[str, object]


class Pruned(Event, frozen=True, tag="pruned"):
    """A request reads a view of its prompt from now on.

    Attributes:
        tokens: length of the prompt; after a retraction with what had been generated.
        dense: its first tokens, which stay dense.
        slots: size of the view.
        freed: slots that others can have now and could not before; negative if it took some and freed none.
    """

    rid: str
    tokens: int
    dense: int
    slots: int
    freed: int


class Shrunk(Event, frozen=True, tag="shrunk"):
    """The pool ran short: a request reads a smaller view of its prompt from now on.

    Attributes:
        slots: size of the view.
        freed: slots that it gave back.
    """

    rid: str
    slots: int
    freed: int


class Released(Event, frozen=True, tag="released"):
    """A request has ended, and its slots are given back.

    Attributes:
        how: ``finished``, ``aborted_running`` or ``aborted_mid_prefill``.
        reason: why it had no view, as in ``meta_info["laprox"]``; None if it had one, or was not decided yet.
        slots: size of its view; 0 without one.
        held: slots that it referred to, shared ones included.
        cached, cached_from_host, cached_from_storage: tokens of its prompt from the prefix cache, of them
            those from host memory, and those from a storage behind it.
    """

    rid: str
    how: str
    reason: str | None
    slots: int
    held: int
    cached: int = 0
    cached_from_host: int = 0
    cached_from_storage: int = 0


class Retracted(Event, frozen=True, tag="retracted"):
    """The pool ran short: a request gave its slots back, and waits to be computed again.

    Attributes:
        slots, held: as in ``Released``.
    """

    rid: str
    slots: int
    held: int


AnyEvent = Start | Pruned | Shrunk | Released | Retracted


def decode(message: bytes) -> AnyEvent:
    """The event in a message.

    Raises:
        ValueError: it is none that this version of the schema knows.
    """
    topic, _, data = message.partition(b"\0")
    if not topic.startswith(TOPIC.encode()):
        raise ValueError(f"no event of schema {SCHEMA}: {topic[:40]!r}")
    event: AnyEvent = msgspec.msgpack.decode(data, type=AnyEvent)
    return event


class Publisher:
    """Publishes events; never waits for a subscriber.

    Attributes:
        endpoint: where.
        sent: events so far, ``Start`` not among them.
        overflows: how often a subscriber's queue was found full. It misses events from there until it has
            read half of them, and sees how many by ``seq``; the others miss nothing.
    """

    def __init__(self, endpoint: str, waiting: int = WAITING) -> None:
        """
        Raises:
            zmq.ZMQError: the endpoint cannot be had.
        """
        self.endpoint = endpoint
        self.sent = self.overflows = 0
        self._encoder = msgspec.msgpack.Encoder()
        self._context = zmq.Context()
        self._socket = self._context.socket(zmq.PUB)
        self._socket.linger = 0
        self._socket.sndhwm = waiting
        self._socket.ipv6 = True
        try:
            self._socket.bind(endpoint)
        except zmq.ZMQError:
            self.close()
            raise
        # Without this option ZeroMQ drops messages for a full queue silently; with it, sending fails.
        self._socket.set(zmq.XPUB_NODROP, 1)

    def start(self, about: Start) -> None:
        """Says what the server is, to everybody who comes."""
        welcome = self._message(about)
        self._socket.set(zmq.XPUB_WELCOME_MSG, welcome)

    def publish(self, kind: Callable[..., Event], rid: str, **said: object) -> None:
        self.sent += 1
        rid = rid[:LONGEST_RID].encode(errors="replace").decode()
        event = kind(seq=self.sent, time=time.time(), rid=rid, **said)
        message = self._message(event)
        # Asking for the socket's state makes ZeroMQ notice what subscribers have just read, so there may be
        # room.
        if self._try(message) or (self._socket.get(zmq.EVENTS) and self._try(message)):
            return
        self.overflows += 1
        # Sent again with drops allowed: everybody gets it but the subscribers whose queues are full.
        self._socket.set(zmq.XPUB_NODROP, 0)
        self._try(message)
        self._socket.set(zmq.XPUB_NODROP, 1)

    def _try(self, message: bytes) -> bool:
        try:
            self._socket.send(message, zmq.NOBLOCK)
        except zmq.Again:
            return False
        return True

    def _message(self, event: Event) -> bytes:
        return f"{TOPIC}{event.__struct_config__.tag}\0".encode() + self._encoder.encode(event)

    def close(self) -> None:
        self._context.destroy(linger=0)
