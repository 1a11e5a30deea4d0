"""``laprox top``: what servers say, drawn; and servers that say nothing, or something else."""

import copy
import io
import os
import pty
import signal
import subprocess
import sys
import threading
import time
from contextlib import suppress
from functools import partial
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st
from rich.console import Console

from fake_http import fake_http
from laprox_tools import CommandError
from laprox_tools.__main__ import main
from laprox_tools.http_client import ServerClient
from laprox_tools.top import command
from laprox_tools.top.panel import PARTS, panel, widths
from laprox_tools.top.snapshot import snapshot

ROOT = Path(__file__).resolve().parent.parent
LAPROX = {
    "requests": 140, "pruned": 130, "unpruned": {"short": 7, "no_room": 3}, "prunes": 133, "staged": 2,
    "slots_freed": 88_000, "slots_taken": 2_000, "slots_held": 18_000, "released": {"finished": 140},
    "config": {"budget": 0.1, "keep_prefix": "system"},
    "available_slots": 20_000, "evictable_slots": 12_000, "pinned_slots": 8_000,
    "protected_slots": 5_000, "view_slots": 2_400, "surplus_slots": 0, "shrinks": 0,
    "running": 8, "running_tokens": 31_000, "waiting": 2, "prefilling": 1, "untested": [],
    "host_slots": 0, "host_available_slots": 0,
}  # fmt: skip
# What a server may say beside that.
MORE = {
    "prompt_tokens": 1000,
    "cached_tokens": 250,
    "cached_from_host": 0,
    "cached_from_storage": 0,
    "kept_cells": [10, 30, 20],
    "scored_cells": 200,
}
INFO = {
    "model_path": "/models/needle-7m",
    "version": "0.5.23",
    "attention_backend": "torch_native",
    "max_total_num_tokens": 40_000,
    "internal_states": [{"laprox": LAPROX, "last_gen_throughput": 123.4}],
}
STOCK = INFO | {"internal_states": [{"last_gen_throughput": 1.0}]}


def info(**changes):
    said = copy.deepcopy(INFO)
    said["internal_states"][0]["laprox"] |= changes
    return said


def drawn(*given, width=100):
    console = Console(file=io.StringIO(), width=width, highlight=False)
    console.print(panel(*given))
    return console.file.getvalue()


def test_a_panel_shows_what_the_server_says():
    text = drawn("http://here", snapshot(info(**MORE), 1.0), None, None)
    assert "needle-7m, SGLang 0.5.23, torch_native, budget 0.1" in text
    # 40,000 less what is free and evictable is pinned; less what is exact and in views, it is tails.
    for part, slots in zip(PARTS, ("5,000", "2,400", "600", "12,000", "20,000"), strict=True):
        assert f"{part} {slots}" in text.replace("\u00a0", " ")
    assert (
        "8 running, 3 waiting" in text and "31,000 tokens in 8,000 slots" in text and "123 tokens/s" in text
    )
    assert "130 pruned, 7 short, 3 no room" in text
    assert "prefix cache hit 25 %" in text and "90,000 slots freed by 133 views" in text
    assert "kept by layer, 10.0 % on average" in text and "▃█▆" in text
    # There is nothing yet to compare with.
    assert "requests/s" not in text and "freed/s" not in text


def test_what_was_not_tried_is_seen():
    tried = drawn("here", snapshot(info(untested=["enable-torch-compile", "grpc-port"]), 1.0), None, None)
    assert "not tried with LaProx: enable-torch-compile, grpc-port" in tried
    assert "not tried" not in drawn("here", snapshot(INFO, 1.0), None, None)


def test_what_a_server_does_not_say_is_not_made_up():
    text = drawn("http://here", snapshot(INFO, 1.0), None, None)
    assert "hit" not in text and "by layer" not in text
    assert "hit" not in drawn("here", snapshot(info(**MORE | {"prompt_tokens": 0}), 1.0), None, None)
    idle = drawn("here", snapshot(info(running=0, running_tokens=0), 1.0), None, None)
    assert "tokens" not in idle and "0 running" in idle


def test_hits_from_host_memory_are_told():
    tier = {"cached_from_host": 90, "cached_from_storage": 10}
    slots = {"host_slots": 80_000, "host_available_slots": 20_000}
    text = drawn("here", snapshot(info(**MORE | tier | slots), 10.0), None, None)
    assert "prefix cache hit 25 %, 10 % from host memory" in text
    assert "host memory: 60,000 of 80,000 slots" in text


def test_rates_are_differences():
    before = snapshot(INFO, 10.0)
    # One view took 3,000 slots and freed none, others freed 5,000.
    now = snapshot(info(requests=150, slots_freed=90_000, slots_taken=5_000), 12.0)
    text = drawn("here", now, before, None)
    assert "5.0 requests/s" in text and "2,500 slots freed/s" in text
    # It was started anew.
    anew = drawn("here", snapshot(info(requests=1, slots_freed=0, slots_taken=0), 12.0), before, None)
    assert "0.0 requests/s" in anew and "0 slots freed/s" in anew


def test_views_that_may_shrink_are_told_of():
    now = snapshot(info(), 10.0)
    assert "beyond what was promised" not in drawn("here", now, None, None)
    config = {"budget": 0.1, "budget_max": 0.3, "keep_prefix": "system"}
    changed = {
        "view_slots": 4_400,
        "surplus_slots": 2_000,
        "evictable_slots": 14_000,
        "available_slots": 18_000,
    }
    now = snapshot(info(config=config, shrinks=12, **changed), 10.0)
    # They count as evictable, and are shown as what they are.
    assert now.pool["views"] == 4_400 and now.pool["exact, evictable"] == 12_000
    assert sum(now.pool.values()) == 40_000 and now.pool["tails"] == 600
    text = drawn("here", now, None, None)
    assert "budget 0.1 to 0.3" in text
    assert "views hold 2,000 slots beyond what was promised" in text and "12 shrinks" in text


def test_ranks_are_shown_together():
    """They answer in any order, so that none of them can be told from the others."""
    both = info(**MORE)
    idle = info(
        running=0, running_tokens=0, waiting=0, prefilling=0, pruned=2, unpruned={"short": 1}, view_slots=0,
        protected_slots=0, pinned_slots=0, available_slots=10_000, evictable_slots=5_000, requests=3,
        prunes=2, slots_freed=10_000, slots_taken=0, prompt_tokens=0, cached_tokens=0, kept_cells=[],
        scored_cells=0,
    )["internal_states"]  # fmt: skip
    with fake_http(
        {"/server_info": (200, both | {"internal_states": [*idle, *both["internal_states"]]})}
    ) as url:
        watch = command.Watch(url, None)
        watch.look()
    now, _, fault = watch.state
    assert fault is None and now.ranks == 2 and now.slots == 55_000
    text = drawn("here", now, None, None)
    assert "budget 0.1, 2 ranks" in text and "55,000 slots" in text
    parts = dict(zip(PARTS, ("5,000", "2,400", "600", "17,000", "30,000"), strict=True))
    for part, slots in parts.items():
        assert f"{part} {slots}" in text.replace("\u00a0", " ")
    # How fast the idle one was before is no speed of now.
    assert "8 running, 3 waiting" in text and "123 tokens/s" in text
    assert "132 pruned, 8 short, 3 no room" in text and "100,000 slots freed by 135 views" in text
    assert "prefix cache hit 25 %" in text and "kept by layer, 10.0 % on average" in text
    with pytest.raises(CommandError, match="no LaProx to watch"):
        snapshot(INFO | {"internal_states": [*idle, {}]}, 1.0)


@pytest.mark.parametrize("width", [20, 40, 60, 200])
def test_narrow_and_wide_terminals(width):
    text = drawn("http://127.0.0.1:30000", snapshot(info(**MORE), 1.0), None, None, width=width)
    assert all(len(line) <= width for line in text.splitlines())
    words = " ".join(text.replace("│", " ").replace("\u00a0", " ").split())
    assert "8 running" in words and "freed by 133" in words
    glyphs = [glyph for glyph, _ in PARTS.values()]
    bar = next(line for line in text.splitlines() if line.count(glyphs[-1]) > 2)
    assert len(bar.strip("│ ")) == width - 4 and all(glyph in bar for glyph in glyphs)


@given(st.lists(st.integers(0, 10**7), min_size=5, max_size=5), st.integers(10, 300))
def test_a_bar_is_as_wide_as_it_should_and_shows_all_there_is(sizes, width):
    cells = widths(dict(zip(PARTS, sizes, strict=True)), width)
    assert sum(cells.values()) == width
    assert all(cells[name] > 0 for name, size in zip(PARTS, sizes, strict=True) if size)
    if any(sizes):
        assert all(cells[name] == 0 for name, size in zip(PARTS, sizes, strict=True) if not size)


def test_several_servers_and_some_that_are_none(capsys, tmp_path):
    here = {"/server_info": (200, INFO)}
    with (
        fake_http(here) as ours,
        fake_http({"/server_info": (200, STOCK)}) as stock,
        fake_http({"/server_info": (200, b"<html>")}) as other,
        fake_http({"/server_info": (200, [])}) as list_,
        fake_http({"/server_info": (401, {"error": "Unauthorized"})}) as locked,
        fake_http({"/server_info": (500, {"error": {"message": "it\nbroke"}})}) as broken,
        fake_http({"/server_info": (200, info(protected_slots=None))}) as older,
        fake_http({}) as gone,
    ):
        urls = [ours, stock, other, list_, locked, broken, older, gone, "127.0.0.1:1"]
        assert main(["top", "--once", *urls]) == 1
        text = " ".join(capsys.readouterr().out.replace("│", " ").split())
        assert main(["top", "--once", ours]) == 0
    for said in (
        "8 running, 3 waiting",
        "stock SGLang 0.5.23 with needle-7m: no LaProx to watch, start it with --enable-laprox",
        "answers no JSON: is it an SGLang server?",
        "is no SGLang server: its /server_info is another one",
        "wants a key: give --api-key",
        "HTTP 500: it\\nbroke",
        "another version of LaProx is there: TypeError",
        "HTTP 404: ",
        "http://127.0.0.1:1 cannot be reached: is a server there?",
    ):
        assert said in text, said


def test_a_key_is_sent():
    headers = []
    with fake_http({"/server_info": (200, INFO)}, headers) as url:
        ServerClient(url, "secret").info()
        ServerClient(url).info()
    assert headers[0]["Authorization"] == "Bearer secret" and "Authorization" not in headers[1]
    with pytest.raises(CommandError, match="can't encode character"):
        ServerClient("http://127.0.0.1:1", "sec…ret").info()


@pytest.mark.parametrize(
    "states",
    [
        *([None], 5, [{"laprox": []}], [{"laprox": LAPROX | {"unpruned": [1]}}]),
        [{"laprox": LAPROX | MORE | {"kept_cells": [1] * layers}} for layers in (2, 3)],
    ],
)
def test_a_panel_never_stands_still_over_an_answer_that_nobody_foresaw(states):
    with fake_http({"/server_info": (200, INFO | {"internal_states": states})}) as url:
        watch = command.Watch(url, None)
        watch.look()
    now, before, fault = watch.state
    assert now is before is None and "another version of LaProx" in fault


def test_a_server_that_does_not_answer_does_not_hold_up_the_others(monkeypatch):
    def late(body):
        time.sleep(1)
        return 200, INFO

    monkeypatch.setattr(command, "SECONDS", 0.2)
    with fake_http({"/server_info": late}) as url:
        watch = command.Watch(url, None)
        watch.look()
    assert watch.state == (None, None, f"{url} does not answer within 0.2 s")
    with pytest.raises(CommandError, match="cannot be reached"):
        ServerClient("http://127.0.0.1:1").info()


def test_a_picture_is_one_file_that_fetches_nothing(tmp_path, capsys):
    picture = tmp_path / "top.svg"
    with fake_http({"/server_info": (200, INFO)}) as url:
        assert main(["top", "--once", "--svg", str(picture), url]) == 0
    text = picture.read_text()
    assert text.startswith("<svg") and "needle-7m" in text and len(text) < 30_000
    # Namespaces are names, not addresses.
    assert "url(http" not in text and "@font-face" not in text
    capsys.readouterr()
    assert main(["top", "--svg", str(picture), "127.0.0.1:1"]) == 1
    assert capsys.readouterr().err == "laprox top: --svg goes with --once\n"
    assert main(["top", "127.0.0.1:1"]) == 1
    assert capsys.readouterr().err == "laprox top: standard output is no terminal: ask for --once\n"


def test_it_lives_in_a_terminal_until_ctrl_c():
    """A terminal of its own: frames come, a server that dies says so, and Ctrl-C ends it at once."""
    parent, child = pty.openpty()
    shown: list[bytes] = []
    # All the time: a terminal that nobody reads is full at some time, and who writes to it waits.
    reader = threading.Thread(target=collect, args=(parent, shown))
    with fake_http({"/server_info": (200, INFO)}) as url:
        process = subprocess.Popen(
            [sys.executable, "-m", "laprox_tools", "top", "--interval", "0.2", url, "127.0.0.1:1"],
            cwd=ROOT, stdin=child, stdout=child, stderr=child, env=os.environ | {"TERM": "xterm"},
            # What a shell runs in the background ignores Ctrl-C, and so does all that it starts.
            preexec_fn=partial(signal.signal, signal.SIGINT, signal.SIG_DFL),
        )  # fmt: skip
        # With its last holder the terminal ends, and so does its reader.
        os.close(child)
        reader.start()
        try:
            wait_for(shown, "requests/s", "cannot be reached")
            process.send_signal(signal.SIGINT)
            assert process.wait(20) == 130
        finally:
            process.kill()
            process.wait()
            reader.join()
            os.close(parent)
    # The screen is given back, and nothing is left on it.
    assert "Traceback" not in text_of(shown) and "\x1b[?1049l" in text_of(shown)


def collect(terminal: int, shown: list[bytes]) -> None:
    # Linux says EIO where others say that it is the end.
    with suppress(OSError):
        while piece := os.read(terminal, 65_536):
            shown.append(piece)


def wait_for(shown: list[bytes], *wanted: str) -> None:
    deadline = time.monotonic() + 60
    while not all(text in text_of(shown) for text in wanted):
        assert time.monotonic() < deadline, text_of(shown)[-2000:]
        time.sleep(0.1)


def text_of(shown: list[bytes]) -> str:
    return b"".join(shown).decode(errors="replace")
