"""Recorded and drawn agents, what a load point counts, and how its parts become one."""

import gzip
import http.server
import itertools
import json
import math
import random
import statistics
import threading
from types import SimpleNamespace

import pytest

from benchmarks.harness.provenance import made_by
from benchmarks.serving import open_loop, plots, run
from benchmarks.serving.__main__ import LIMITS, RESERVED, main
from benchmarks.serving.client import Client, Reply
from benchmarks.serving.load.agents import agents
from benchmarks.serving.load.traces import TraceFileError, read_trace
from benchmarks.serving.load.workload import Session, Step, first_prompt
from benchmarks.serving.merge import merge
from benchmarks.serving.record import Record, read
from benchmarks.serving.run import LoadPoint
from benchmarks.serving.tally import Histogram, Tally, turns
from laprox_tools.needle import MODEL_PATH
from test_bench_serving import generate

__all__ = ["generate"]
HASHES = [[1, 2, 3], [1, 2, 3, 4, 5], [1, 9], [1, 9, 3], [1, 9, 3, 4]]
ROWS = [(190, 5), (310, 6), (120, 7), (180, 8), (65_530, 9)]


def recorded(tmp_path, kind):
    """The same session as kv-cache-tester records it, and shortened."""
    path = tmp_path / "trace"
    if kind == "compact":
        shared = (0, 190, 64, 120, 180)
        rows = [[i, a, b, s, 1.0, 100.0 * i] for i, ((a, b), s) in enumerate(zip(ROWS, shared, strict=True))]
        path.write_bytes(gzip.compress(json.dumps([{"id": "x", "rows": rows}]).encode()))
        return path
    requests = [
        {"type": "n", "t": i, "in": a, "out": b, "hash_ids": hashes, "think_time": 100.0 * i}
        for i, ((a, b), hashes) in enumerate(zip(ROWS, HASHES, strict=True))
    ]
    content = json.dumps({"id": "x", "requests": [*requests[:2], {"type": "subagent"}, *requests[2:]]})
    if kind == "folder":
        path.mkdir()
        (path / "trace_0001.json").write_text(content)
    else:
        path.write_text(content)
    return path


@pytest.mark.parametrize("kind", ["compact", "file", "folder"])
def test_a_recorded_session_is_cut_before_its_first_request_over_the_limit(tmp_path, kind):
    [session] = read_trace(recorded(tmp_path, kind), 65_536, 60)
    assert session.steps == (
        Step(190, 0, 5, 0.0), Step(310, 190, 6, 60), Step(120, 64, 7, 60), Step(180, 120, 8, 60)
    )  # fmt: skip
    with pytest.raises(TraceFileError, match="no session of 4 requests under 200 tokens"):
        read_trace(tmp_path / "trace", 200, 60)


def test_requests_of_mooncake_share_what_their_blocks_say(tmp_path):
    lines = [
        {"timestamp": 1000 * i, "input_length": length, "output_length": 5, "hash_ids": blocks}
        for i, (length, blocks) in enumerate([(1000, [0, 1]), (1100, [0, 1, 2]), (600, [0, 7])])
    ]
    path = tmp_path / "mooncake.jsonl"
    path.write_text("\n".join(map(json.dumps, lines)))
    sessions = read_trace(path, 65_536, 60)
    assert [session.start for session in sessions] == [0, 1, 2]
    first, second, third = (
        first_prompt(session, session.steps[0], random.Random(session.seed)) for session in sessions
    )
    assert [len(first), len(second), len(third)] == [1000, 1100, 600]
    assert second[:1000] == first and third[:512] == first[:512] and third[512:] != first[512:600]


@pytest.mark.parametrize("text", ["", "{", '{"a": 1}', "[1]", '{"timestamp": 1}'])
def test_what_is_no_trace_is_refused_in_one_line(tmp_path, text):
    path = tmp_path / "x"
    path.write_text(text)
    with pytest.raises(TraceFileError) as refused:
        read_trace(path, 65_536, 60)
    assert "\n" not in str(refused.value)


# Of 692 recorded sessions, cut: medians of prompts, new tokens, answers, pauses, steps.
MEDIANS = {"64k": (45_431, 575, 199, 7, 19), "128k": (80_121, 633, 205, 9, 40)}


@pytest.mark.parametrize("limit", MEDIANS)
def test_drawn_agents_are_as_recorded_ones(limit):
    sessions = agents(0, 400, LIMITS[limit] - RESERVED, 60)
    steps = [step for session in sessions for step in session.steps]
    later = [step for session in sessions for step in session.steps[1:]]
    found = (
        statistics.median(step.prompt for step in steps),
        statistics.median(step.prompt - step.shared for step in later),
        statistics.median(step.output for step in steps),
        statistics.median(step.pause for step in later),
        statistics.median(len(session.steps) for session in sessions),
    )
    assert found == pytest.approx(MEDIANS[limit], rel=0.25)
    assert all(step.prompt + step.output < LIMITS[limit] and step.pause <= 60 for step in steps)
    assert sessions == agents(0, 400, LIMITS[limit] - RESERVED, 60) != agents(1, 400, LIMITS[limit], 60)


def done(sent, first, gap, tokens, turn=0, prompt=100, known=0, hits=0):
    chunks = [(sent + first + gap * i, 1) for i in range(tokens)]
    return Reply(prompt, sent, turn, known, chunks, [7] * tokens, hits, done=True)


def test_a_histogram_is_right_to_a_hundredth():
    values = [0.001 * 1.07**i for i in range(150)]
    histogram = Histogram()
    histogram.note(values)
    for percent in (1, 50, 95, 99):
        exact = sorted(values)[math.ceil(percent / 100 * len(values)) - 1]
        assert histogram.percentile(percent) == pytest.approx(exact, rel=0.006)
    assert Histogram().percentile(50) is None


def test_a_point_counts_what_happened_in_its_time():
    replies = [
        # Ended before: only its tokens within count.
        done(0, 1, 1, 10),
        done(10, 0.5, 0.02, 50, turn=3, prompt=500, known=480, hits=450),
        done(12, 2.0, 0.01, 100, turn=40, prompt=100, known=90, hits=95),
        # They wait: one for longer than either level allows, one for less.
        Reply(100, 10),
        Reply(100, 59.5),
        Reply(100, 20, error="HTTP 500"),
        Reply(100, 70),
    ]
    tally = Tally.of(replies, [(8, 1, 1), (20, 100, 10), (30, 300, 30)], 9.5, 60)
    row = tally.figures()
    assert (row["requests"], row["failed_requests"], row["waiting_at_end"]) == (3, 1, 2)
    assert tally.output_tokens == 1 + 50 + 100
    assert (row["prompt_tokens"], row["prefix_hit_tokens"], row["new_prompt_tokens"]) == (700, 545, 130)
    assert row["computed_again"] == 30
    assert (row["slots_mean"], row["slots_peak"], row["host_slots_mean"]) == (200, 300, 20)
    # The one that still waits is among the first tokens with the 50 seconds it has waited.
    assert row["ttft_p99"] == pytest.approx(50_000, rel=0.01)
    assert list(row["ttft_p50_by_turn"]) == ["1", "2-5", "32+"]
    assert row["ttft_p50_by_turn"]["2-5"] == pytest.approx(500, rel=0.01)
    # End to end: 1.48 s for 50 tokens, 2.99 s for 100, 10 s for 10.
    assert row["per_token_p50"] == pytest.approx(29.9, rel=0.02)
    assert row["interactivity_p90"] == pytest.approx(1, rel=0.02)
    assert tally.good == {"agents": 2, "chat": 1}
    assert row["goodput_chat"] | {"output_tok_s": 0} == {
        "requests_s": round(1 / 50.5, 4), "output_tok_s": 0, "share": 0.2, "met": False
    }  # fmt: skip
    assert row["invalid"] == ["partial: 50 of at least 300 s measured", "1 of 4 requests failed"]


def test_turns_are_grouped():
    assert [turns(first) for first in (1, 2, 6, 32)] == ["1", "2-5", "6-15", "32+"]


def point(name="drawn-64k-2", at=2):
    sessions = [Session(f"s{i}", (Step(9, 0, 4), Step(20, 9, 4), Step(30, 20, 4))) for i in range(5)]
    load = {"curve": "drawn-64k", "at": at, "unit": "agents at once"}
    return LoadPoint(name, "drawn agents, cut at 64K, 2 at once", load, sessions, agents=at)


@pytest.fixture
def of_a_commit(monkeypatch):
    monkeypatch.setattr("benchmarks.harness.provenance.REVISION", {"commit": "abc", "dirty": False})


def part(seconds, replies):
    tally = Tally.of(replies, [], 0, 1e9)
    tally.seconds = seconds
    return tally


def test_parts_of_a_point_are_added_up_in_one_file_and_in_several(tmp_path, of_a_commit):
    replies = [done(i, 0.1 + 0.01 * i, 0.02, 30, turn=i % 7, known=50, hits=20) for i in range(60)]
    together, one, other = (tmp_path / f"{name}.json" for name in ("together", "one", "other"))
    record = Record(together, False)
    record.put_part(point(), "laprox", 0, part(200, replies[:25]), "fa3")
    assert record.holds(point().name, "laprox", 0) and not record.holds(point().name, "laprox", 1)
    assert record.figures(point().name, "laprox")["invalid"] == ["partial: 200 of at least 300 s measured"]
    record.put_part(point(), "laprox", 1, part(150, replies[25:]), "fa3")
    whole = part(350, replies).figures()
    found = record.figures(point().name, "laprox")
    assert {key: found[key] for key in whole} == whole and whole["invalid"] == []
    # How far they lie apart is kept.
    assert [one["ttft_p50"] for one in found["parts"].values()] == [
        part(1, some).figures()["ttft_p50"] for some in (replies[:25], replies[25:])
    ]
    Record(one, False).put_part(point(), "laprox", 0, part(200, replies[:25]), "fa3")
    Record(other, False).put_part(point(), "laprox", 1, part(150, replies[25:]), "fa3")
    Record(other, False).put_failure(point("drawn-64k-3", 3), "stock", "not done", "fa3")
    content = merge([read(one), read(other)])
    rows = {row["workload"]: row for row in content["rows"]}
    side = rows["drawn-64k-2"]["laprox"]
    assert {key: side[key] for key in whole} == whole and set(side["parts"]) == {"0", "1"}
    # The same part twice is not counted twice.
    again = merge([read(one), read(one)])["rows"][0]["laprox"]
    assert again["requests"] == 25
    assert rows["drawn-64k-3"]["stock"]["failed"] == "not done" and rows["drawn-64k-2"]["load"]["at"] == 2
    pytest.importorskip("matplotlib")
    [picture] = plots.draw(content, tmp_path / "x.json")
    assert picture.name == "x-drawn-64k.png" and picture.stat().st_size > 5000


def test_a_part_of_another_commit_replaces_the_point(tmp_path, of_a_commit, monkeypatch):
    record = Record(tmp_path / "x.json", False)
    record.put_part(point(), "laprox", 0, part(200, [done(0, 1, 1, 5)] * 3), "fa3")
    monkeypatch.setattr("benchmarks.harness.provenance.REVISION", {"commit": "def", "dirty": False})
    assert not record.holds(point().name, "laprox", 0)
    record.put_part(point(), "laprox", 1, part(100, [done(0, 1, 1, 5)]), "fa3")
    side = record.figures(point().name, "laprox")
    assert side["requests"] == 1 and list(side["parts"]) == ["1"] and made_by()["commit"] == "def"


def service(url):
    return SimpleNamespace(
        name="laprox",
        url=url,
        backend="fa3",
        names_sessions=False,
        flush=lambda: None,
        abort=lambda every: None,
    )


def test_agents_begin_in_the_middle_and_go_on(generate, tmp_path, monkeypatch):
    sent = []
    send = Client._send

    async def noted(self, ids, output, turn, *more):
        sent.append((turn, tuple(ids[:5])))
        return await send(self, ids, output, turn, *more)

    monkeypatch.setattr(Client, "_send", noted)
    said = []
    tally = run.measure_point(point(), service(generate), 0.05, 0, said.append)
    assert "warm after" in said[0] and tally.requests > 4 and tally.failed == 0
    first = dict(reversed(sent))
    assert min(turn for turn, _ in sent[:2]) >= 1, "sessions begin in their middle half"
    # What is drawn twice has other ids, and every later session begins at its first step.
    assert len({ids for turn, ids in sent if turn == 0}) == sum(turn == 0 for turn, _ in sent)
    assert set(first) == {0, 1, 2}
    assert run.run(point(), service("http://127.0.0.1:1"), Record(None, False), 0.01, 0, said.append)[
        "failed"
    ].startswith("the connection failed")


def test_a_running_server_is_driven_over_several_points(generate, tmp_path, capsys, of_a_commit):
    """From the command line: load points, a part more, a row; what is there is not measured again."""
    file = tmp_path / "x.json"
    given = ["--server", "stock", "--quick", "--url", generate, "--json", str(file), "--minutes", "0.04"]
    drawn = [*given, "--agents", "--limit", "16k"]
    assert main([*drawn, "--at", "2,3"]) == 0
    said = capsys.readouterr().out.splitlines()
    assert said[0].startswith("drawn-16k-2 on stock, fa3: ") and "INVALID (partial" in said[0]
    assert said[1].startswith("drawn-16k-3 on stock, fa3: ") and "x-drawn-16k.png" in said[2]
    assert main([*drawn, "--at", "2,3", "--part", "1"]) == 0
    assert main([*drawn, "--rate", "20"]) == 0
    assert main([*given, "--workload", "e,d", "--rounds", "3"]) == 0
    rows = {row["workload"]: row["stock"] for row in read(file)["rows"]}
    assert list(rows) == ["e", "d", "drawn-16k-2", "drawn-16k-3", "drawn-16k-rate-20"]
    point = rows["drawn-16k-2"]
    assert set(point["parts"]) == {"0", "1"} and point["requests"] > 0 and not point["failed_requests"]
    assert (
        len(rows["e"]["rounds"]) == 3
        and rows["e"]["output_tok_s"] > 0
        and len(rows["d"]["ttft_p50_by_turn"]) == 6
    )
    capsys.readouterr()
    assert main([*drawn, "--at", "2", "--part", "1"]) == 0
    assert capsys.readouterr().err == "serving: drawn-16k-2 on stock: there already, of this commit\n"
    assert main([*drawn[:1], "laprox", *drawn[2:], "--at", "2"]) == 2
    assert "is not laprox (laprox: asked for)" in capsys.readouterr().err


def test_arrivals_are_at_a_rate_or_at_the_recorded_times():
    source = random.Random(0)
    given = LoadPoint("x", "x", {}, point().sessions, rate=2.0)
    found = run.arrivals(given, source, 500, 0)
    assert len(found) == pytest.approx(1000, rel=0.1) and all(0 < second < 500 for second, _ in found)
    recorded = [Session(f"r{i}", (Step(9, 0, 4),), start=float(i)) for i in range(100)]
    given = LoadPoint("x", "x", {}, recorded, stretch=2.0)
    assert [s for s, _ in run.arrivals(given, source, 10, 0)] == [0, 2, 4, 6, 8]
    # The next part goes on where this one ends.
    assert [session.seed for _, session in run.arrivals(given, source, 10, 1)] == [
        f"r{i}" for i in range(5, 10)
    ]


def test_lines_of_sglangs_client_become_a_point():
    """Two conversations of two turns; the second has failed in its last turn."""
    result = {
        "duration": 400.0,
        "input_lens": [100, 160, 100, 160],
        "output_lens": [7, 5, 3, 0],
        "ttfts": [0.5, 0.2, 0.4, 0.0],
        # Chunks, of which one brings several tokens.
        "itls": [[0.1, 0.1, 0.1], [0.1] * 4, [], []],
        "errors": ["", "", "", "no"],
        "cached_tokens": [0, 105, 0, 0],
    }
    tally = open_loop.tally_of(result, 2)
    row = tally.figures()
    assert (row["requests"], row["failed_requests"], row["seconds"]) == (3, 1, 400.0)
    assert tally.output_tokens == 15 and row["output_tok_s"] == round(15 / 400, 2)
    # 107 tokens of the second turn were known, 2 of them were computed again.
    assert row["computed_again"] == 2 and row["new_prompt_tokens"] == 100 + 53 + 100
    assert sum(tally.itl.values()) == 6 + 4
    assert row["itl_p50"] == pytest.approx(50, rel=0.01)
    assert list(row["ttft_p50_by_turn"]) == ["1", "2-5"]


def test_sglangs_client_knows_its_flags(tmp_path, monkeypatch):
    """Its own parser reads the command; it stops before it sends anything."""
    from sglang.benchmark import serving

    given = {}
    monkeypatch.setattr(serving, "run_benchmark", lambda args: given.update(vars(args)))
    row = open_loop.OpenLoop(0.5)
    command = open_loop.command(
        row, SimpleNamespace(url="http://h:1", model=tmp_path), 5, 3, tmp_path / "out"
    )
    flags = list(itertools.dropwhile(lambda part: part != "--backend", command))
    monkeypatch.setattr("sys.argv", ["x", *flags])
    serving.cli_main()
    assert given["gsp_num_turns"] == 4 and given["request_rate"] == 0.5 and given["seed"] == 3
    assert given["num_prompts"] == given["gsp_num_groups"] == round(0.5 * 300 * open_loop.ARRIVING)
    assert dict(given["goodput"]) == {"ttft": 30_000, "tpot": 100}


def same_beginning(one, other):
    pairs = zip(one, other, strict=False)
    return len(list(itertools.takewhile(lambda pair: pair[0] == pair[1], pairs)))


@pytest.fixture
def chat(tmp_path):
    """(URL, prompts): a server of chats that says what it got in tokens, and caches what it has seen."""
    prompts = []

    class Handler(http.server.BaseHTTPRequestHandler):
        def log_message(self, *given):
            pass

        def say(self, content, kind="application/json"):
            body = content if isinstance(content, bytes) else json.dumps(content).encode()
            self.send_response(200)
            self.send_header("Content-Type", kind)
            self.send_header("Content-Length", str(len(body)))
            self.end_headers()
            self.wfile.write(body)

        def do_GET(self):
            self.say({"data": [{"id": "m"}], "internal_states": [{}]})

        def do_POST(self):
            body = json.loads(self.rfile.read(int(self.headers.get("Content-Length") or 0)) or b"{}")
            if "messages" not in body:
                # The cache is emptied behind the warm-up.
                prompts.clear()
                return self.say({})
            words = [word for message in body["messages"] for word in message["content"].split()]
            seen = max((same_beginning(words, old) for old in prompts), default=0)
            prompts.append(words)
            output = body.get("max_completion_tokens") or body["max_tokens"]
            usage = {"prompt_tokens": len(words), "completion_tokens": output, "total_tokens": 0}
            usage["prompt_tokens_details"] = {"cached_tokens": seen}
            chunks = [{"choices": [{"delta": {"content": "the "}}]} for _ in range(output)]
            chunks.append(
                {"choices": [], "usage": usage, "sglext": {"cached_tokens_details": {"device": seen}}}
            )
            lines = [f"data: {json.dumps(chunk)}\n\n" for chunk in chunks] + ["data: [DONE]\n\n"]
            self.say("".join(lines).encode(), "text/event-stream")

    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        yield f"http://127.0.0.1:{server.server_port}", prompts
        server.shutdown()


def test_what_sglangs_client_says_of_turns_is_what_the_server_got(chat, monkeypatch):
    """Input tokens of every turn, and the cached ones: not those of the first turn again and again."""
    url, prompts = chat
    monkeypatch.setattr(open_loop, "ARRIVING", 0.02)
    row = open_loop.OpenLoop(2.0, quick=True, turns=3)
    tally = open_loop.measure_open_loop(row, SimpleNamespace(url=url, model=MODEL_PATH), 2, 0, print)
    assert (tally.requests, tally.failed, len(prompts)) == (15, 0, 15)
    assert tally.prompt_tokens == sum(map(len, prompts)) == 5 * (340 + 396 + 452)
    assert tally.new_tokens == 5 * (340 + 40 + 40)
    # The server has seen all of a later prompt but the answer and the question.
    assert tally.hit_tokens >= 5 * (340 + 396) and tally.again == 5 * 2 * 16
    assert tally.output_tokens == 15 * 16 and sum(tally.itl.values()) == 15 * 15
