"""The commands beside a real server: what they show is what it says elsewhere."""

import base64
import json
import re
import subprocess
import sys
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy
import pytest

from benchmarks.harness.client import POLL_SECONDS, facts
from benchmarks.harness.server import RETURN_KEPT
from laprox_sglang.prefix import common
from laprox_sglang.report.positions import kept_positions
from laprox_tools.needle import DIGITS, Sample, Task
from server import ROOT, Server, command

pytestmark = pytest.mark.full

BUDGET, SLOTS = 0.1, 30_000
FLAGS = ("--enable-laprox", "--laprox-budget", str(BUDGET), "--max-total-tokens", str(SLOTS), *RETURN_KEPT)
# Long enough to be looked at while it is made.
ANSWER = 4000


@pytest.fixture(scope="module")
def server() -> Iterator[Server]:
    with Server(*FLAGS, tokens=SLOTS) as server:
        yield server


@pytest.fixture
def sample(seed: int) -> Sample:
    return Task(seed).batch(1, 900)[0]


def laprox(*arguments: str, text: str | None = None) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-m", "laprox_tools", *arguments],
        cwd=ROOT, input=text, capture_output=True, text=True, timeout=300,
    )  # fmt: skip


def test_the_start_says_what_to_expect(server: Server) -> None:
    lines = [line for line in server.launch.log.read_text().splitlines() if "is on: SGLang" in line]
    [line] = lines
    assert re.search(
        r"LaProx \S+ is on: SGLang 0\.5\.23, TorchNativeAttnBackend, Config\(budget=0\.1, ", line
    )
    assert f" MB reserved beside a pool of {SLOTS:,} slots. A prompt of 7,500 tokens pins 750 slots" in line
    assert "It pays where " in line


def test_top_shows_a_pool_that_adds_up(server: Server, sample: Sample, tmp_path: Path) -> None:
    server.flush()
    prompt = sample.prompt_ids()
    opted_out = Task(1).batch(1, 700)[0].prompt_ids()
    with ThreadPoolExecutor(2) as pool:
        pool.submit(server.generate, prompt, ANSWER)
        pool.submit(server.generate, opted_out, ANSWER, {"enabled": False})
        while (said := server.laprox())["running"] < 2:
            time.sleep(POLL_SECONDS)
        done = laprox("top", "--once", "--svg", str(tmp_path / "top.svg"), server.url, "127.0.0.1:1")
        server.abort(every=True)
    assert done.returncode == 1 and "Traceback" not in done.stderr
    text = " ".join(done.stdout.replace("│", " ").replace("\u00a0", " ").split())
    assert "127.0.0.1:1 cannot be reached" in text and "2 running, 0 waiting" in text
    # The opted-out prompt is pinned in the tree; the other one has a view, and both have tails.
    parts = {
        name: int(re.search(rf"{name} ([\d,]+)", text)[1].replace(",", ""))
        for name in ("exact, in use", "views", "tails", "exact, evictable", "free")
    }
    assert sum(parts.values()) == SLOTS
    assert parts["exact, in use"] == len(opted_out) and parts["views"] == -(-len(prompt) // 10)
    # What they begin with alike is there once, and pinned.
    assert parts["exact, evictable"] == len(prompt) - common(prompt, opted_out) == said["evictable_slots"]
    assert 0 < parts["tails"] < 2 * ANSWER
    assert "needle-7m" in (tmp_path / "top.svg").read_text()


def test_explain_draws_what_the_server_kept(server: Server, sample: Sample, tmp_path: Path) -> None:
    context, question = " ".join(sample.context[1:]), " ".join(sample.questions[0])
    out = tmp_path / "kept.html"
    flags = ("--prompt", "-", "--question", question, "--tokens", str(DIGITS), "--out", str(out))
    done = laprox("explain", server.url, *flags, text=context)
    assert done.returncode == 0 and not done.stderr, done.stderr
    text = out.read_text()
    assert " ".join(sample.answers[0]) in text
    data = json.loads(re.search(r'id="data">(.*?)</script>', text)[1])
    share = numpy.frombuffer(base64.b64decode(data["share"]), numpy.uint8).reshape(data["layers"], -1) / 255
    # The same prompt, by ids and with the template's tokens: they keep the same.
    prompt = sample.prompt_ids()
    assert data["tokens"] == len(prompt) == len(data["starts"])
    said = facts(server.generate(prompt, DIGITS, {"return_kept": True}))
    kept = numpy.zeros_like(share)
    for layer, heads in enumerate(kept_positions(said)):
        for positions in heads:
            kept[layer, positions] += 1 / len(heads)
    assert numpy.abs(share - kept).max() < 1 / 255
    assert done.stdout.startswith(f"needle-7m: {said['slots_after']} slots for {len(prompt)} tokens (")


def test_doctor_says_what_a_start_says(server: Server) -> None:
    """The flags of the server that runs, and flags of one that would not: beside each other, for the time."""
    good = command(*FLAGS)[1:]
    bad = [*good, "--enable-mixed-chunk", "--page-size", "2"]
    with ThreadPoolExecutor(2) as pool:
        one = pool.submit(laprox, "doctor", "--json", "--", "python", *good)
        two = pool.submit(laprox, "doctor", "--", *bad[2:])
    done = one.result()
    assert done.returncode == 0, done.stdout + done.stderr
    found = {(x["area"], x["name"]): x for x in json.loads(done.stdout)["findings"]}
    assert found["command line", "flags"]["reason"].startswith(
        "a server would start: device cpu, torch_native, "
    )
    assert found["hooks", "known places"]["status"] == found["hooks", "in place"]["status"] == "ok"
    done = two.result()
    assert done.returncode == 1 and not done.stderr
    assert "✗ --enable-mixed-chunk" in done.stdout and "✗ --page-size" in done.stdout
    assert "2 error" in done.stdout
