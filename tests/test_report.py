"""Facts, totals and metrics of a scheduler whose memory is real."""

import inspect
import json
import random
import re
import subprocess
import sys
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from prometheus_client import REGISTRY

from fakes import HEADS, LAYERS, Scheduler, sglang_context
from laprox_patches.scheduler.metrics import pool_of
from laprox_patches.scheduler.output import add_facts, say_facts
from laprox_sglang.cache.tree import LaproxCache
from laprox_sglang.options.refusals import UNTRIED_NAMES
from laprox_sglang.report.events import Pruned, Publisher, Released, Retracted
from laprox_sglang.report.metrics import METRICS, Metrics
from laprox_sglang.report.positions import encode, kept_positions
from laprox_sglang.views.plan import REASONS, make_plan
from laprox_sglang.views.stages import STAGES, Stages
from laprox_sglang.views.state import view_of

LABELS = {"model_name": "m", "tp_rank": 0}
PROMPT = [i % 4 for i in range(40)]


@pytest.fixture(autouse=True)
def sglang():
    with sglang_context():
        yield


@pytest.fixture
def metrics_of():
    made = []

    def make(scheduler: Scheduler) -> Metrics:
        made.append(Metrics(LABELS, scheduler.laprox.report, scheduler.pool.slot_bytes, LAYERS))
        return made[-1]

    yield make
    for metrics in made:
        for metric in metrics._metrics.values():
            REGISTRY.unregister(metric)


def finish(scheduler: Scheduler) -> list[dict[str, Any]]:
    """Runs everything to its end; the facts of all requests."""
    scheduler.run_until_idle()
    return [facts for said in told(scheduler, scheduler.arrived) for facts in said]


def told(scheduler: Scheduler, reqs: list[Any]) -> list[list[dict[str, Any]]]:
    """What the output of these requests says of them."""
    return add_facts({}, SimpleNamespace(tree_cache=scheduler.tree_cache), reqs).get("laprox", [])


def sample(name: str, **labels: str) -> float | None:
    return REGISTRY.get_sample_value(name, {"model_name": "m", "tp_rank": "0", **labels})


def test_kept_positions_arrive_as_they_were() -> None:
    scheduler = Scheduler(200)
    req = scheduler.arrive(PROMPT)
    while view_of(req) is None:
        scheduler.step()
    view = view_of(req)
    positions, offsets = view.positions.tolist(), view.cu_cells.tolist()
    [said] = finish(scheduler)
    assert isinstance(said["kept_positions"]["int32"], bytes), "the scheduler's thread does no more than copy"
    meta_info, state, accumulated = {}, SimpleNamespace(obj=SimpleNamespace()), []

    def stock(self, meta_info, state, customized_info, index, finish_reason):
        accumulated.append(customized_info)

    others = {"other": [[1], [2]], "laprox": [[], [said]]}
    say_facts(stock, None, meta_info, state, others, 0, None)
    assert not meta_info and not hasattr(state.obj, "laprox_facts"), "it goes on"
    say_facts(stock, None, meta_info, state, others, 1, {"type": "length"})
    assert accumulated == [{"other": [[1], [2]]}] * 2, "what SGLang accumulates it cuts up by token"
    assert len(meta_info["laprox"]) == 1 and state.obj.laprox_facts is meta_info["laprox"][-1]
    kept = kept_positions(json.loads(json.dumps(meta_info["laprox"][-1])))
    assert [len(heads) for heads in kept] == [HEADS] * LAYERS
    assert [p for heads in kept for head in heads for p in head] == positions
    assert [len(head) for heads in kept for head in heads] == torch.tensor(offsets).diff().tolist()
    whole = {"pruned": False}
    assert encode(whole) is whole


def test_metrics_say_what_the_totals_say(metrics_of) -> None:
    scheduler = Scheduler(200)
    metrics = metrics_of(scheduler)
    totals = scheduler.laprox.report.totals

    def publish() -> None:
        metrics.publish(pool_of(scheduler), scheduler.laprox.pruner.stages.seconds())

    publish()
    for metric in METRICS:
        # Everything is there from the beginning, at zero.
        found = [s for m in REGISTRY.collect() for s in m.samples if s.name == metric.name]
        assert found and (metric.name == "laprox_slots" or all(s.value == 0 for s in found))
    assert sample("laprox_slots", state="available") == 200
    reqs = [scheduler.arrive(PROMPT), scheduler.arrive(PROMPT[::-1]), scheduler.arrive(PROMPT, enabled=False)]
    scheduler.arrive(PROMPT[:5])
    while not all(req.output_ids for req in reqs):
        scheduler.step()
    publish()
    views = [view for req in reqs if (view := view_of(req))]
    assert sample("laprox_views") == len(views) == 2
    assert sample("laprox_view_slots") == sum(view.slots for view in views)
    assert sample("laprox_saved_bytes") == sum(v.spared for v in views) * 2 * LAYERS * HEADS * 4 * 4
    said = finish(scheduler)
    publish()
    publish()
    pruned = [facts for facts in said if facts["pruned"]]
    assert sample("laprox_requests_total", outcome="pruned", reason="") == len(pruned) == 2
    assert sample("laprox_requests_total", outcome="whole", reason="disabled") == 1
    assert sample("laprox_requests_total", outcome="whole", reason="short") == 1
    assert sample("laprox_prompt_tokens_total", source="cached") == sum(f["cached_tokens"] for f in said)
    both = [sample("laprox_prompt_tokens_total", source=source) for source in ("cached", "computed")]
    assert sum(both) == sum(f["prompt_tokens"] for f in said) == 125
    assert sample("laprox_cached_tokens_total", tier="gpu") == both[0]
    assert sample("laprox_cached_tokens_total", tier="host") == sample("laprox_host_slots", state="used") == 0
    for layer in range(LAYERS):
        cells = sum(round(f["layer_share"][layer] * f["kept_cells"]) for f in pruned)
        assert sample("laprox_kept_cells_total", layer=str(layer)) == cells
    assert sample("laprox_scored_cells_total") == HEADS * sum(f["slots_before"] for f in pruned)
    assert sample("laprox_freed_slots_total") == totals.slots_freed
    assert sample("laprox_held_slots_total") == totals.slots_held
    assert sample("laprox_views") == sample("laprox_view_slots") == sample("laprox_saved_bytes") == 0
    assert sample("laprox_slots", state="pinned") == 0
    assert all(sample("laprox_stage_seconds_total", stage=stage) > 0 for stage in STAGES[:-1])


def test_what_was_not_tried_is_said_everywhere(metrics_of) -> None:
    scheduler = Scheduler(200)
    scheduler.laprox.report.untested = ("enable-torch-compile",)
    metrics = metrics_of(scheduler)
    metrics.publish(pool_of(scheduler), scheduler.laprox.pruner.stages.seconds())
    assert {flag: sample("laprox_untested", flag=flag) for flag in UNTRIED_NAMES} == {
        flag: float(flag == "enable-torch-compile") for flag in UNTRIED_NAMES
    }
    assert scheduler.laprox.report.to_dict()["untested"] == ["enable-torch-compile"]


@pytest.mark.parametrize("overlap", [False, True])
def test_counters_never_go_back(metrics_of, seed, overlap) -> None:
    """prometheus_client raises where one does, and would take the scheduler with it."""
    scheduler = Scheduler(150, overlap=overlap)
    metrics, draw = metrics_of(scheduler), random.Random(seed)
    # A view of a prompt that somebody else holds whole frees nothing, and takes slots.
    for options in ({"enabled": False}, {}):
        scheduler.arrive(PROMPT, 20, **options)
        # Nobody is aborted or retracted before that has happened.
        for _ in range(3):
            scheduler.step()
    for _ in range(300):
        if draw.random() < 0.2 and len(scheduler.waiting_queue) < 3:
            ids = PROMPT[: draw.randint(4, 40)] if draw.random() < 0.5 else draw.choices(range(4), k=30)
            scheduler.arrive(ids, draw.randint(1, 12), enabled=draw.random() < 0.7)
        if draw.random() < 0.05 and scheduler.arrived:
            scheduler.abort(draw.choice(scheduler.arrived))
        batch = scheduler.step(draw.choice((8, 1024)), retract=draw.random() < 0.1)
        told(scheduler, [req for req in batch.reqs if req.finished()] if batch else [])
        metrics.publish(pool_of(scheduler), scheduler.laprox.pruner.stages.seconds())
    totals = scheduler.laprox.report.totals
    assert totals.slots_taken and totals.prunes > 5 and totals.released["retracted"]
    freed = sample("laprox_freed_slots_total") - sample("laprox_taken_slots_total")
    assert freed == totals.slots_freed
    finish(scheduler)
    assert (totals.views, totals.view_slots, totals.spared_slots) == (0, 0, 0)


def test_every_reason_has_a_series() -> None:
    """Those that a plan can name, and those that are found out later."""
    named = re.findall(r'plan\.whole\("(\w+)"\)', inspect.getsource(make_plan))
    found = set(re.findall(r'return "(\w+)"', inspect.getsource(LaproxCache)))
    assert [*named, *sorted(found)] == list(REASONS) and len(found) == 2


def test_events_follow_the_life_of_a_request() -> None:
    scheduler = Scheduler(200)
    heard = []
    events = scheduler.laprox.report.events = Publisher("inproc://events")
    events.publish = lambda kind, rid, **said: heard.append(kind(seq=0, time=0.0, rid=rid, **said))
    pruned, whole = scheduler.arrive(PROMPT), scheduler.arrive(PROMPT[:5])
    while view_of(pruned) is None:
        scheduler.step()
    slots = view_of(pruned).slots
    scheduler.retract_everything()
    scheduler.run_until_idle()
    of_pruned = [event for event in heard if event.rid == pruned.rid]
    assert [type(event) for event in of_pruned] == [Pruned, Retracted, Pruned, Released]
    assert of_pruned[0].tokens == len(PROMPT) and of_pruned[0].slots == of_pruned[1].slots == slots
    assert of_pruned[3].how == "finished" and of_pruned[3].reason is None and of_pruned[3].slots
    last = [event for event in heard if event.rid == whole.rid][-1]
    assert (type(last), last.reason, last.slots) == (Released, "short", 0)
    events.close()


class Clock:
    """A CUDA event of a device that computes when it is told to."""

    now, done = 0.0, 0.0

    def __init__(self, enable_timing: bool) -> None:
        assert enable_timing

    def record(self) -> None:
        Clock.now += 1000.0
        self.at = Clock.now

    def query(self) -> bool:
        return self.at <= Clock.done

    def elapsed_time(self, other: "Clock") -> float:
        assert other.query(), "who asks now waits for the device"
        return other.at - self.at


def test_stages_of_a_gpu_count_when_they_are_over(monkeypatch) -> None:
    monkeypatch.setattr("torch.cuda.Event", Clock)
    stages = Stages(cuda=True)
    for _ in range(2):
        stages.start()
        for stage in STAGES:
            stages.done(stage)
    assert stages.seconds() == dict.fromkeys(STAGES, 0.0)
    Clock.done = 3000.0
    assert stages.seconds() == dict(zip(STAGES, (1.0, 1.0, 0.0, 0.0), strict=True))
    Clock.done = 10_000.0
    assert stages.seconds() == dict.fromkeys(STAGES, 2.0)


def test_metrics_are_not_imported_before_they_are_made() -> None:
    """prometheus_client decides at its import where values are kept, and SGLang must have said it by then."""
    code = "import sys, laprox_sglang.report.refused, laprox_sglang.runtime"
    code += "; print([name for name in sys.modules if name.startswith('laprox_sglang.report.metrics')])"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.split()[-1] == "[]"
