"""Reads a trace that SGLang's profiler took of one lone request: what pruning costs, kernel by kernel.

The profiler slows the host, so times between kernels are upper bounds. ``prefill_busy_ms``: some kernel runs,
up to the sampling of the first token. ``laprox_ms``: kernels that score, select and pack.
``first_decode_ms``: from that sampling to the next; ``idle_ms``: no kernel runs in it. ``to_decode_ms``: from
that sampling to the first kernel of a CUDA graph. ``syncs``, ``copies_to_host``: calls of the host between
the launches of these two.

Where the prefill ends: every forward pass ends in the arg-max of greedy sampling, so these kernels cut the
trace into steps. The prompt's last chunk is the last step whose kernels ran for at least a quarter as long as
those of the longest step: its attention is the most expensive of all chunks, and a decode step takes
a hundredth of it. The decode that follows starts with the first kernel of a CUDA graph.
"""

import bisect
import gzip
import itertools
import json
import re
from collections import Counter
from pathlib import Path
from typing import Any

import laprox_kernels

Event = dict[str, Any]
# Files of the kernels that prune; those that attend replace SGLang's own and are no addition.
PRUNING = ("score_kernels", "select", "pack")
SYNCS = ("cudaStreamSynchronize", "cudaDeviceSynchronize", "cudaEventSynchronize")


class TraceError(ValueError):
    """A trace without what is looked for; the message is one line."""


def summarise(folder: Path) -> dict[str, Any]:
    """Figures of the one trace in a folder.

    Raises:
        TraceError: there is none, or it cannot be read.
    """
    found = sorted(folder.rglob("*.trace.json.gz"))
    if not found:
        raise TraceError(f"no trace in {folder}")
    try:
        with gzip.open(found[-1], "rt") as file:
            events = json.load(file)["traceEvents"]
        return summary_of(events)
    except TraceError:
        raise
    except Exception as error:
        # Whatever a trace looks like, the other workloads go on.
        raise TraceError(f"{found[-1].name} cannot be read: {error!r}") from error


def summary_of(events: list[Event]) -> dict[str, Any]:
    spans = sorted((event for event in events if event.get("ph") == "X"), key=lambda event: event["ts"])
    kernels = [event for event in spans if event.get("cat") == "kernel"]
    device = [event for event in spans if event.get("cat") in ("kernel", "gpu_memcpy", "gpu_memset")]
    host = [event for event in spans if event.get("cat") in ("cuda_runtime", "cuda_driver")]
    launches = {event["args"]["correlation"]: event for event in host if "correlation" in event["args"]}
    prefill, decode = samplings(kernels)
    first = next(
        (
            event
            for event in kernels
            if event["ts"] >= end(prefill)
            and launches.get(event["args"].get("correlation"), {}).get("name") == "cudaGraphLaunch"
        ),
        None,
    )
    since = launches[prefill["args"]["correlation"]]["ts"]
    until = launches[(first or decode)["args"]["correlation"]]["ts"]
    calls = Counter(event["name"] for event in host if since < event["ts"] < until)
    copies = [
        event
        for event in device
        if "DtoH" in event["name"]
        and since < launches.get(event["args"].get("correlation"), {"ts": 0})["ts"] < until
    ]
    ours = kernel_names()
    before = [event for event in kernels if event["ts"] < end(decode)]
    times: dict[str, float] = {}
    for event in before:
        if event["name"] in ours:
            times[event["name"]] = times.get(event["name"], 0.0) + event["dur"]
    return {
        "prefill_busy_ms": to_ms(busy(before, float("-inf"), end(prefill))),
        "laprox_ms": to_ms(sum(time for name, time in times.items() if ours[name] in PRUNING)),
        "first_decode_ms": to_ms(end(decode) - end(prefill)),
        "idle_ms": to_ms(end(decode) - end(prefill) - busy(device, end(prefill), end(decode))),
        "to_decode_ms": None if first is None else to_ms(first["ts"] - end(prefill)),
        "syncs": sum(calls[name] for name in SYNCS),
        "copies_to_host": len(copies),
        "syncs_by_name": {name: calls[name] for name in SYNCS if calls[name]},
        "kernels_ms": {f"{ours[name]}.{name}": to_ms(time) for name, time in sorted(times.items())},
    }


def samplings(kernels: list[Event]) -> tuple[Event, Event]:
    """The arg-max that ends the prefill, and the one of the first decode step."""
    cuts = [event for event in kernels if "argmax" in event["name"].lower()]
    if len(cuts) < 2:
        raise TraceError(f"{len(kernels)} kernels in the trace, {len(cuts)} arg-max of greedy sampling")
    work = [0.0] * len(cuts)
    starts = [cut["ts"] for cut in cuts]
    for event in kernels:
        if (step := bisect.bisect_left(starts, event["ts"])) < len(cuts):
            work[step] += event["dur"]
    last = max(step for step, time in enumerate(work) if time >= max(work) / 4)
    if last + 1 == len(cuts):
        raise TraceError("no decode step after the prefill in the trace")
    return cuts[last], cuts[last + 1]


def kernel_names() -> dict[str, str]:
    """File of every Triton kernel of the project; a trace shows them under these names."""
    folder = Path(laprox_kernels.__file__).parent / "gpu"
    pattern = re.compile(r"^@triton\.jit.*?^def (\w+)\(", re.MULTILINE | re.DOTALL)
    return {name: file.stem for file in folder.glob("*.py") for name in pattern.findall(file.read_text())}


def end(event: Event) -> float:
    return float(event["ts"]) + float(event["dur"])


def busy(events: list[Event], since: float, until: float) -> float:
    """Microseconds of a period in which at least one of the events, which are in order, was under way."""
    spans = [(max(event["ts"], since), min(end(event), until)) for event in events]
    total, reached = 0.0, since
    for begin, finish in itertools.filterfalse(lambda span: span[1] <= span[0], spans):
        total += max(0.0, finish - max(begin, reached))
        reached = max(reached, finish)
    return total


def to_ms(microseconds: float) -> float:
    return round(microseconds / 1000, 4)
