"""Prometheus metrics, on SGLang's own ``/metrics``: numbers of ``Totals``, and nothing counted anew.

Import late: prometheus_client chooses how values are kept when it is imported, and SGLang says that first.
"""

import time
from collections.abc import Callable, Mapping
from typing import NamedTuple

from prometheus_client import Counter, Gauge

from laprox_sglang.options.refusals import UNTRIED_NAMES
from laprox_sglang.report.reporter import Reporter
from laprox_sglang.report.totals import HOW_RELEASED, Pool
from laprox_sglang.views.plan import REASONS
from laprox_sglang.views.stages import STAGES


class Seen(NamedTuple):
    """What the metrics of a scheduler are read from.

    Attributes:
        stages: seconds by stage.
        slot_bytes: of a slot, in all layers and on all ranks.
        layers: of the model.
    """

    report: Reporter
    pool: Pool
    stages: Mapping[str, float]
    slot_bytes: int
    layers: int


Values = Mapping[tuple[str, ...], float]


class Metric(NamedTuple):
    """
    Attributes:
        name: in full, so a counter's ends in ``_total``.
        labels: names of its own labels; the others are SGLang's.
        read: its values by the values of its labels. Those that are always there start at zero.
    """

    name: str
    help: str
    labels: tuple[str, ...]
    read: Callable[[Seen], Values]

    @property
    def is_counter(self) -> bool:
        return self.name.endswith("_total")

    def make(self, labels: list[str]) -> Counter | Gauge:
        if self.is_counter:
            return Counter(self.name, self.help, labels)
        return Gauge(self.name, self.help, labels, multiprocess_mode="mostrecent")


def one(read: Callable[[Seen], float]) -> Callable[[Seen], Values]:
    return lambda seen: {(): read(seen)}


def requests(seen: Seen) -> Values:
    finished = seen.report.totals.finished
    whole: dict[tuple[str, ...], float] = {("whole", reason): finished[reason] for reason in REASONS}
    return whole | {("pruned", ""): finished["pruned"], ("aborted", ""): finished["aborted"]}


def prompt_tokens(seen: Seen) -> Values:
    totals = seen.report.totals
    cached = totals.cached_tokens
    return {("cached",): cached, ("computed",): totals.prompt_tokens - cached}


def cached_tokens(seen: Seen) -> Values:
    totals = seen.report.totals
    host, storage = totals.cached_from_host, totals.cached_from_storage
    return {("gpu",): totals.cached_tokens - host - storage, ("host",): host, ("storage",): storage}


def kept_cells(seen: Seen) -> Values:
    return {(str(layer),): seen.report.totals.kept_cells[layer] for layer in range(seen.layers)}


def slots(seen: Seen) -> Values:
    pool = seen.pool
    return {("pinned",): pool.pinned, ("evictable",): pool.evictable, ("available",): pool.available}


def host_slots(seen: Seen) -> Values:
    slots, available = seen.pool.host_slots, seen.pool.host_available
    return {("used",): slots - available, ("available",): available}


def untested(seen: Seen) -> Values:
    return {(name,): name in seen.report.untested for name in UNTRIED_NAMES}


METRICS = (
    Metric(
        "laprox_requests_total",
        "Requests that ended: pruned, whole for a reason, or aborted amid their prefill.",
        ("outcome", "reason"),
        requests,
    ),
    Metric(
        "laprox_prompt_tokens_total",
        "Prompt tokens of ended requests: found in the prefix cache, or computed.",
        ("source",),
        prompt_tokens,
    ),
    Metric(
        "laprox_cached_tokens_total",
        "Prompt tokens of ended requests that were found in the prefix cache, by where they lay.",
        ("tier",),
        cached_tokens,
    ),
    Metric(
        "laprox_kept_tokens_total",
        "Tokens' worth of KV that ended requests read of their prompts: dense prefix and view, or all.",
        (),
        one(lambda seen: seen.report.totals.kept_tokens),
    ),
    Metric(
        "laprox_held_slots_total",
        "KV slots that ended requests referred to at their last step, shared ones included.",
        (),
        one(lambda seen: seen.report.totals.slots_held),
    ),
    Metric(
        "laprox_kept_cells_total",
        "Cells of pruned prompts, of a token and a KV head each, that were kept, by layer.",
        ("layer",),
        kept_cells,
    ),
    Metric(
        "laprox_scored_cells_total",
        "Cells of pruned prompts in one layer, kept or not: what a layer's kept cells are a share of.",
        (),
        one(lambda seen: seen.report.totals.scored_cells),
    ),
    Metric(
        "laprox_viewed_tokens_total",
        "Prompt tokens that views of ended requests stood for.",
        (),
        one(lambda seen: seen.report.totals.viewed_tokens),
    ),
    Metric(
        "laprox_erased_tokens_total",
        "Those of them of which no layer and no head kept anything.",
        (),
        one(lambda seen: seen.report.totals.erased_tokens),
    ),
    Metric(
        "laprox_prunes_total",
        "Views made. A request that was retracted and came again counts again.",
        (),
        one(lambda seen: seen.report.totals.prunes),
    ),
    Metric(
        "laprox_staged_prunes_total",
        "Views that were packed over slots they were packed from, as the pool had no others.",
        (),
        one(lambda seen: seen.report.totals.staged),
    ),
    Metric(
        "laprox_freed_slots_total",
        "KV slots that others could have after a view was made and could not before.",
        (),
        one(lambda seen: seen.report.totals.slots_freed + seen.report.totals.slots_taken),
    ),
    Metric(
        "laprox_taken_slots_total",
        "KV slots that views took without freeing any, as others held the prompt whole.",
        (),
        one(lambda seen: seen.report.totals.slots_taken),
    ),
    Metric(
        "laprox_shrinks_total",
        "Views of running requests that were exchanged for smaller ones, as the pool was short.",
        (),
        one(lambda seen: seen.report.totals.shrinks),
    ),
    Metric(
        "laprox_shrunk_slots_total",
        "KV slots that views gave back so.",
        (),
        one(lambda seen: seen.report.totals.shrunk_slots),
    ),
    Metric(
        "laprox_released_requests_total",
        "Requests that gave their KV slots back, health probes included, by how.",
        ("how",),
        lambda seen: {(how,): seen.report.totals.released[how] for how in HOW_RELEASED},
    ),
    Metric(
        "laprox_stage_seconds_total",
        "Time in the stages of a view's making; on a GPU by the clock of the stream they run on.",
        ("stage",),
        lambda seen: {(stage,): seen.stages[stage] for stage in STAGES},
    ),
    Metric(
        "laprox_events_total",
        "Events published.",
        (),
        one(lambda seen: seen.report.events.sent if seen.report.events else 0),
    ),
    Metric(
        "laprox_event_overflows_total",
        "How often an event found a subscriber's queue full; what it misses from there, it sees by the gap.",
        (),
        one(lambda seen: seen.report.events.overflows if seen.report.events else 0),
    ),
    Metric(
        "laprox_slots",
        "KV slots: pinned by requests, evictable cache, or available. sglang:token_usage is the pinned "
        "share: it stays low, as prompts are evictable while their requests run.",
        ("state",),
        slots,
    ),
    Metric(
        "laprox_host_slots",
        "Slots of the host tier: in use, or available. Zero without one.",
        ("state",),
        host_slots,
    ),
    Metric(
        "laprox_views",
        "Requests that read a view of their prompt now.",
        (),
        one(lambda seen: seen.report.totals.views),
    ),
    Metric(
        "laprox_view_slots",
        "KV slots of the views that are read now.",
        (),
        one(lambda seen: seen.report.totals.view_slots),
    ),
    Metric(
        "laprox_surplus_slots",
        "Those of them beyond what requests were promised, which count as evictable.",
        (),
        one(lambda seen: seen.report.totals.surplus_slots),
    ),
    Metric(
        "laprox_saved_bytes",
        "KV that running requests would pin more if each held its prompt whole, counted one by one: those "
        "with the same prompt would share it.",
        (),
        one(lambda seen: seen.report.totals.spared_slots * seen.slot_bytes),
    ),
    Metric(
        "laprox_untested",
        "1 for flags of this server that were not tried with LaProx, 0 for those that it does not use.",
        ("flag",),
        untested,
    ),
)


class Metrics:
    """The metrics of one scheduler, with SGLang's labels on each.

    Attributes:
        published: when, by ``time.monotonic``.
    """

    def __init__(self, labels: Mapping[str, str], report: Reporter, slot_bytes: int, layers: int) -> None:
        """
        Args:
            labels: of SGLang's own scheduler metrics.
            slot_bytes, layers: as in ``Seen``.
        """
        self.published = 0.0
        self._labels = dict(labels)
        self._report, self._slot_bytes, self._layers = report, slot_bytes, layers
        self._metrics = {metric.name: metric.make([*self._labels, *metric.labels]) for metric in METRICS}
        self._said: dict[tuple[str, tuple[str, ...]], float] = {}
        self._children: dict[tuple[str, tuple[str, ...]], Counter | Gauge] = {}

    def publish(self, pool: Pool, stages: Mapping[str, float]) -> None:
        """Says what has changed since the last time.

        Args:
            stages: seconds by stage.
        """
        self.published = time.monotonic()
        seen = Seen(self._report, pool, stages, self._slot_bytes, self._layers)
        for metric in METRICS:
            for values, number in metric.read(seen).items():
                key = metric.name, values
                child = self._children.get(key)
                if child is None:
                    child = self._children[key] = self._child(metric, values)
                before = self._said.get(key)
                if number == before:
                    continue
                if isinstance(child, Counter):
                    child.inc(number - (before or 0))
                else:
                    # A gauge with labels appears in /metrics only once it was set, so zeros are set as well.
                    child.set(number)
                self._said[key] = number

    def _child(self, metric: Metric, values: tuple[str, ...]) -> Counter | Gauge:
        own = dict(zip(metric.labels, values, strict=True))
        return self._metrics[metric.name].labels(**self._labels, **own)
