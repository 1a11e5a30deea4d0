"""Sessions of recorded agents and chats, from three kinds of files; only lengths and times are read.

1. A JSON list of sessions ``{"id", "rows": [[t, in, out, shared, api seconds, think seconds], ...]}``, a
   shortened form of the second.
2. kv-cache-tester (https://github.com/callanjfox/kv-cache-tester, ``traces``): a JSON object a session, or a
   folder of them, ``{"id", "requests": [{"type", "t", "in", "out", "hash_ids", "think_time"}, ...]}``, with a
   hash for every 64 tokens of a prompt.
3. Mooncake (https://github.com/kvcache-ai/Mooncake, ``FAST25-release/traces``): a line of JSON a request,
   ``{"timestamp", "input_length", "output_length", "hash_ids"}``, with a number for every 512 tokens; equal
   numbers are equal tokens in all prompts. Every request is a session of one step with a recorded start.

Any of them may be compressed with gzip.
"""

import gzip
import json
from itertools import takewhile
from pathlib import Path
from typing import Any

from benchmarks.serving.load.workload import BLOCK, Session, Step

MOONCAKE_BLOCK = 512
# A session of which less is left under the limit says little of sessions.
LEAST_STEPS = 4


class TraceFileError(ValueError):
    """A trace that cannot be read, or has nothing to replay; the message is one line."""


def read_trace(path: Path, limit: int, longest_pause: float) -> list[Session]:
    """Sessions of a file, cut before their first request over a limit.

    Args:
        limit: tokens of a prompt and its answer.
        longest_pause: seconds; longer ones are cut to it.

    Raises:
        TraceFileError: it is none of the three kinds, or nothing is left under the limit.
    """
    try:
        files = sorted(path.glob("*.json")) if path.is_dir() else [path]
        recorded = [session for file in files for session in parse(content(file))]
    except (OSError, ValueError, KeyError, TypeError, IndexError) as error:
        raise TraceFileError(f"{path} is no trace that can be read ({error!r})") from None
    sessions = [cut(session, limit, longest_pause) for session in recorded]
    found = [
        session
        for session in sessions
        if len(session.steps) >= LEAST_STEPS or (session.head and session.steps)
    ]
    if not found:
        raise TraceFileError(f"{path} has no session of {LEAST_STEPS} requests under {limit:,} tokens")
    return found


def content(file: Path) -> str:
    data = file.read_bytes()
    return (gzip.decompress(data) if data[:2] == b"\x1f\x8b" else data).decode()


def parse(text: str) -> list[Session]:
    try:
        found = json.loads(text)
    except json.JSONDecodeError:
        return [mooncake(i, json.loads(line)) for i, line in enumerate(text.splitlines()) if line.strip()]
    if isinstance(found, list):
        return [compact(session) for session in found]
    return [mooncake(0, found)] if "timestamp" in found else [kv_cache_tester(found)]


def compact(session: dict[str, Any]) -> Session:
    rows = session["rows"]
    steps = [
        Step(max(1, prompt), min(shared, prompt), max(1, output), think or 0.0)
        for _, prompt, output, shared, _, think in rows
    ]
    return Session(str(session["id"]), tuple(steps))


def kv_cache_tester(session: dict[str, Any]) -> Session:
    steps: list[Step] = []
    before: list[int] = []
    for request in session["requests"]:
        # Others are markers, such as those of subagents.
        if "hash_ids" not in request or request.get("type") not in ("n", "s"):
            continue
        hashes = request["hash_ids"]
        same = len(list(takewhile(lambda pair: pair[0] == pair[1], zip(hashes, before, strict=False))))
        prompt = max(1, request["in"])
        shared = min(same * BLOCK, prompt, steps[-1].prompt if steps else 0)
        steps.append(Step(prompt, shared, max(1, request["out"]), request.get("think_time") or 0.0))
        before = hashes
    return Session(str(session["id"]), tuple(steps))


def mooncake(number: int, request: dict[str, Any]) -> Session:
    prompt = max(1, request["input_length"])
    step = Step(prompt, 0, max(1, request["output_length"]))
    head = tuple((f"block {block}", MOONCAKE_BLOCK) for block in request["hash_ids"])
    return Session(f"request {number}", (step,), head, request["timestamp"] / 1000)


def cut(session: Session, limit: int, longest_pause: float) -> Session:
    kept = takewhile(lambda step: step.prompt + step.output <= limit, session.steps)
    steps = [Step(s.prompt, s.shared, s.output, min(s.pause, longest_pause)) for s in kept]
    return Session(session.seed, tuple(steps), session.head, session.start)
