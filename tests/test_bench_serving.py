"""The serving benchmark without a server: its client, its arithmetic, its rows, its complaints."""

import argparse
import http.server
import itertools
import json
import threading
import time
from dataclasses import replace
from types import SimpleNamespace

import pytest
import requests

from benchmarks.harness.server import Launch, ServerError, serve_all
from benchmarks.serving import figures, kinds, run, servers, slots
from benchmarks.serving.__main__ import main, more_flags, parse, rows_of
from benchmarks.serving.client import Client, Reply, WorkloadError
from benchmarks.serving.load import workloads
from benchmarks.serving.load.workload import Session, Step, next_prompt
from benchmarks.serving.record import Record
from fake_http import fake_http


def reply(sent, *chunks, hits=0):
    """A reply with chunks (time, tokens)."""
    made = Reply(100, sent, chunks=list(chunks), hit_tokens=hits, done=True)
    made.ids = [7] * sum(tokens for _, tokens in chunks)
    return made


GAUGES = b"""sglang:num_used_tokens{model_name="m"} 7.0
sglang:hicache_host_used_tokens{model_name="m"} 3.0
"""


@pytest.fixture
def generate():
    """URL of a program that streams like ``/generate``; the tokens asked for say how it misbehaves."""

    class Handler(http.server.BaseHTTPRequestHandler):
        def log_message(self, *given):
            pass

        def do_GET(self):
            info = dict.fromkeys(servers.SETTINGS) | {
                "incremental_streaming_output": True, "attention_backend": "fa3", "model_path": "m",
                "max_total_num_tokens": 9, "internal_states": [{}],
            }  # fmt: skip
            self.send_response(200)
            self.end_headers()
            self.wfile.write(json.dumps(info).encode() if self.path == "/server_info" else GAUGES)

        def do_POST(self):
            body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
            self.send_response(200)
            self.end_headers()
            if "input_ids" not in body:
                return
            ids, tokens = body["input_ids"], body["sampling_params"]["max_new_tokens"]
            if tokens == 201:
                self.wfile.write(b'data: {"error": {"message": "no"}}\n\n')
                return
            if tokens == 202:
                time.sleep(3)
            sizes = [1, tokens - 1 - (tokens == 203)]
            for size in sizes:
                meta = {"prompt_tokens": len(ids), "completion_tokens": sum(sizes), "cached_tokens": 5}
                event = {"text": "", "output_ids": [9] * size, "meta_info": meta}
                self.wfile.write(b"data: " + json.dumps(event).encode() + b"\n\n")
            self.wfile.write(b"data: [DONE]\n\n")

    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        yield f"http://127.0.0.1:{server.server_port}"
        server.shutdown()


def lone(*steps):
    return Session("a", tuple(Step(*step) for step in steps))


def streamed(body):
    """What ``/generate`` says of a request."""
    tokens = body["sampling_params"]["max_new_tokens"]
    meta = {"prompt_tokens": len(body["input_ids"]), "completion_tokens": tokens, "cached_tokens": 0}
    return 200, b"data: " + json.dumps({"output_ids": [9] * tokens, "meta_info": meta}).encode() + b"\n"


def test_sessions_are_named_and_closed():
    sent, closed = [], []

    def generated(body):
        sent.append(body["session_id"])
        return streamed(body)

    def close(body):
        closed.append((body["session_id"], len(sent)))
        return 200, {}

    with fake_http({"/generate": generated, "/close_session": close}) as url:
        Client(url, named=True).run([lone((3, 0, 4), (9, 3, 4)), lone((4, 0, 2))], 30, at_once=1)
    first, second = sent[0], sent[2]
    assert sent == [first, first, second] and first != second
    assert closed == [(first, 2), (second, 3)]


def test_a_session_that_is_not_closed_is_a_fault():
    with fake_http({"/generate": streamed}) as url:
        client = Client(url, named=True)
        client.run([lone((3, 0, 4))], 30)
    assert "its session was not closed" in client.replies[0].error


def test_what_names_no_sessions_is_not_sent_to_servers_that_want_them(capsys):
    assert main(["--server", "laprox-agents", "--open-loop", "0.1", "--quick"]) == 2
    assert "names no sessions" in capsys.readouterr().err


def test_a_connection_that_breaks_fails_its_request_alone():
    tries = []

    def generated(body):
        tries.append(body)
        if len(tries) == 1:
            raise ConnectionError("as a server that goes away")
        return streamed(body)

    with fake_http({"/generate": generated}) as url:
        client = Client(url)
        client.keep_going(itertools.repeat(lone((3, 0, 4))), [0], lambda: len(tries) > 3)
    broken, *others = client.replies
    assert broken.error.startswith("the connection broke: ") and others[0].done
    with pytest.raises(WorkloadError, match="the connection failed"):
        client.keep_going(itertools.repeat(lone((3, 0, 4))), [0], lambda: False)


def test_the_client_sends_turns_and_counts_tokens(generate):
    client = Client(generate)
    session = lone((3, 0, 4), (9, 3, 4), (5, 2, 4))
    client.run([session, session], 30, at_once=1)
    # The second prompt is the first, what was generated, and more; the third begins as the second.
    assert [reply.prompt_tokens for reply in client.replies] == [3, 9, 5] * 2
    assert [reply.known for reply in client.replies] == [0, 7, 4] * 2
    assert all([tokens for _, tokens in reply.chunks] == [1, 3] for reply in client.replies)
    assert all(len(reply.gaps()) == 3 and reply.hit_tokens == 5 for reply in client.replies)


@pytest.mark.parametrize(
    ("tokens", "line"),
    [
        (201, "the server answered"),
        (202, "not done after 1 s: 0 of 1 replies"),
        (203, r"are \(2, 202, 202\)"),
    ],
)
def test_the_client_complains(generate, tokens, line):
    with pytest.raises(WorkloadError, match=line):
        Client(generate).run([lone((2, 0, tokens))], 1)


def test_percentiles_are_linear():
    assert figures.milliseconds([4, 1, 3, 2], 50) == 2500
    assert figures.milliseconds([1, 2], 99) == 1990
    assert figures.milliseconds([5], 99) == 5000 and figures.milliseconds([], 99) is None


def test_peak_concurrency_counts_from_first_to_last_token():
    replies = [
        reply(0, (1, 1), (5, 1)),
        reply(0, (2, 1), (3, 1)),
        reply(0, (5, 1), (9, 1)),
        # It waits all the time.
        Reply(100, 0),
    ]
    assert figures.peak_concurrency(replies) == 2
    assert figures.peak_concurrency([]) == 0
    # Whoever was dropped after its first token ran on until then.
    dropped = [Reply(100, 0, chunks=[(start, 1)]) for start in (1, 2, 3)]
    assert figures.peak_concurrency(dropped) == 3


def test_figures_of_a_run():
    replies = [reply(10, (11, 1), (13, 4), hits=8), reply(10, (12, 1), (14, 2))]
    row = figures.figures(replies, [(11.5, 100, 0), (12.5, 300, 0), (13.5, 200, 0)])
    assert row["output_tok_s"] == 8 / 4 and row["requests_s"] == 2 / 4
    assert (row["ttft_p50"], row["itl_p50"]) == (1500, 500)
    assert (row["slots_peak"], row["slots_mean"]) == (300, 200)
    # Requests at once by the replies, at the times of the samples.
    assert row["slots_over_time"] == [[1.5, 100, 1], [2.5, 300, 2], [3.5, 200, 1]]
    assert (row["prefix_hit_tokens"], row["input_tokens"], row["output_tokens"]) == (8, 200, 8)


def test_a_long_series_is_thinned_evenly():
    thin = figures.thin([[float(i)] for i in range(1001)])
    assert len(thin) <= 200 and thin[0] == [0.0] and thin[1][0] == thin[2][0] - thin[1][0]


def test_what_is_compared_has_a_ratio():
    assert figures.ratio({"itl_p50": 10.0, "ttft_p50": None}, {"itl_p50": 4.0}) == {"itl_p50": 0.4}
    lost = figures.ratio({"prefix_hit_tokens": 10}, {"prefix_hit_tokens": 0})
    assert lost == {"prefix_hit_tokens": 0.0}


def test_the_gauge_of_a_metrics_page():
    page = "# HELP sglang:num_used_tokens x\n"
    assert slots.gauge(page, slots.GPU) is None
    assert slots.gauge(page + 'sglang:num_used_tokens{model_name="m",tp_rank="0"} 123.0\n', slots.GPU) == 123


@pytest.mark.parametrize("quick", [True, False])
def test_rows_send_what_they_say(quick, generate):
    for row in workloads.workloads(quick).values():
        row = replace(row, requests=min(row.requests, 8))
        warm, sessions = row.sessions(0)
        assert len(warm) == max(1, row.groups) and len(sessions) == row.requests
        assert {session.steps[0].prompt for session in warm + sessions} == {row.shared + row.prompt}
        assert {len(session.steps) for session in sessions} == {row.turns}
        assert sessions == row.sessions(0)[1]
        if quick:
            client = Client(generate)
            client.run(sessions, 60)
            steps = [step for session in sessions for step in session.steps]
            assert sorted(r.prompt_tokens for r in client.replies) == sorted(step.prompt for step in steps)
            later = [reply for reply in client.replies if reply.turn]
            assert all(reply.known + row.addition == reply.prompt_tokens for reply in later)
        heads = {session.head for session in sessions}
        assert len(heads) == (row.groups or 1) and len({session.seed for session in sessions}) == len(
            sessions
        )


def test_the_next_prompt_goes_on_or_keeps_what_the_recording_shares():
    said, source = list(range(110)), SimpleNamespace(choices=lambda of, k: [999] * k)
    # All of 100 tokens but for a block that was not full: the answer of 10 stands in it, too.
    assert next_prompt(said, 100, Step(115, 64, 1), source) == (said + [999] * 5, 110)
    assert next_prompt(said, 100, Step(105, 64, 1), source) == ([*said[:104], 999], 104)
    assert next_prompt(said, 100, Step(115, 30, 1), source) == (said[:30] + [999] * 85, 30)


def test_every_short_prompt_of_a_pruned_row_can_be_pruned():
    table = workloads.workloads(False)
    short = [row for name, row in table.items() if name.split("-")[0] in ("short", "lone")]
    assert {row.prompt for row in short} == {300, 1024, 4096, 8192} and all(row.pruned == 1 for row in short)
    # Above --laprox-min-tokens.
    assert all(row.prompt >= 256 for row in [*short, *workloads.workloads(True).values()] if row.pruned)


def test_a_smaller_card_gets_a_smaller_load():
    whole, half = workloads.workloads(False), workloads.workloads(False, 0.5)
    assert (whole["b-full"].requests, half["b-full"].requests) == (40, 20)
    assert (whole["c"].requests, half["c"].requests) == (128, 64)
    assert whole["short-1k"].requests == half["short-1k"].requests


GIB = servers.GIB
H200 = servers.Card("NVIDIA H200", 139.8 * GIB, 0.5 * GIB)
H100 = servers.Card("NVIDIA H100 80GB HBM3", 79.2 * GIB, 0.5 * GIB)


def test_what_cards_have_room_for():
    # Measured: 879,841 slots on an H200.
    assert abs(H200.slots - 879_841) < 10_000 and H200.share == 1
    assert 0.45 < H100.share < 0.55
    assert H200.fault() is None and H100.fault() is None
    assert "24 GiB: 8B shapes with three prompts of 32K need" in str(
        servers.Card("NVIDIA A10", 24 * GIB, 0).fault()
    )
    assert "40 of the 79 GiB" in str(replace(H100, used=40 * GIB).fault())


def test_the_written_model_has_the_shapes_and_a_word_for_every_id(tmp_path):
    import transformers

    folder = servers.write_model(tmp_path / "model")
    config = json.loads((folder / "config.json").read_text())
    shape = (
        "num_hidden_layers hidden_size num_attention_heads num_key_value_heads head_dim vocab_size".split()
    )
    assert [config[key] for key in shape] == [32, 4096, 32, 8, 128, 128256]
    tokenizer = transformers.AutoTokenizer.from_pretrained(folder)
    ids = [0, 17, 414, 415, 70_000, 128_255]
    text = tokenizer.decode(ids)
    assert len(tokenizer) == 128256 and tokenizer.encode(text, add_special_tokens=False) == ids
    asked = [{"role": "user", "content": text}, {"role": "assistant", "content": text}]
    assert tokenizer.apply_chat_template(asked, return_dict=False) == ids * 2


def test_turns_are_told_apart():
    replies = [Reply(100, 0, turn, 0, [(1 + turn, 1)], [7], 10 * turn, done=True) for turn in (0, 0, 1, 2)]
    said = figures.by_turn(replies)
    assert said == {
        "ttft_p50_by_turn": [1000.0, 2000.0, 3000.0],
        "hit_tokens_by_turn": [0, 10, 20],
    }
    assert figures.by_turn(replies[:2]) == {}


@pytest.mark.parametrize("backend", [None, "triton"])
@pytest.mark.parametrize("name", kinds.SERVERS)
def test_sglang_knows_the_flags_for_a_gpu(name, backend, tmp_path):
    from sglang.srt.server_args import ServerArgs

    parser = argparse.ArgumentParser()
    ServerArgs.add_cli_args(parser)
    flags = servers.flags(name, True, False, tmp_path, backend)
    given, ours = parser.parse_known_args(flags)
    wanted = kinds.KINDS[name].flags
    is_ours = name.startswith("laprox")
    assert ours == list(wanted[wanted.index("--enable-laprox") :] if is_ours else ())
    assert kinds.of_stock(name) != is_ours
    assert kinds.of_laprox(name) == (is_ours and name[-2:] not in ("20", "30"))
    assert given.attention_backend == backend
    assert given.load_format == "dummy"
    assert given.kv_cache_dtype == ("fp8_e4m3" if "fp8" in name else "auto")
    assert given.enable_hierarchical_cache == (name.rpartition("-")[2] in ("host", "back", "agents"))
    assert "host" not in name or given.hicache_mem_layout == "page_first"
    writes_back = given.enable_hierarchical_cache and name != "stock-host"
    assert given.hicache_write_policy == ("write_back" if writes_back else "write_through")
    assert all(hasattr(given, key) for key in servers.SETTINGS)


@pytest.mark.parametrize(
    ("load", "name"),
    [
        (["--workload", "b-full"], "b-full"),
        (["--agents", "--at", "2"], "drawn-64k-2"),
        (["--open-loop", "0.5"], "open-0.5"),
    ],
)
def test_rows_of_several_gpus_stand_apart(load, name):
    given = ["--server", "laprox", "--quick", *load]
    [one] = rows_of(parse(given), 1.0)
    [two] = rows_of(several := parse([*given, "--tp", "2", "--server-flags", "--x y"]), 1.0)
    assert (one.name, two.name) == (name, f"{name}-tp2") and two.what == f"{one.what}; 2 GPUs"
    assert more_flags(several) == ["--tp-size", "2", "--x", "y"] and more_flags(parse(given)) == []
    if load[0] == "--agents":
        assert (one.load["curve"], two.load["curve"]) == ("drawn-64k", "drawn-64k-tp2")


def test_no_two_servers_look_alike():
    for looks in zip(*((kind.title, kind.colour, kind.flags) for kind in kinds.KINDS.values()), strict=True):
        assert len(set(looks)) == len(kinds.SERVERS)


def test_a_server_that_is_not_the_one_is_named(monkeypatch):
    settings = {
        "incremental_streaming_output": True,
        "kv_cache_dtype": "auto",
        "enable_hierarchical_cache": False,
    }
    info = settings | {
        "attention_backend": "fa3", "model_path": "m", "max_total_num_tokens": 9,
        "internal_states": [{"laprox": {"config": {"budget": 0.2, "budget_max": None}}}],
    }  # fmt: skip
    monkeypatch.setattr(servers.Service, "info", lambda self: info)
    assert servers.Service("laprox-20", "U").fault() is None
    assert (
        servers.Service("laprox", "U").fault()
        == "the server at U is not laprox (--laprox-budget 0.2 in place of 0.05)"
    )
    said = "(--laprox-budget 0.2 in place of 0.05; --laprox-budget-max None in place of 0.3)"
    assert said in str(servers.Service("laprox-5-30", "U").fault())
    assert "(laprox: there; a host tier: asked for)" in str(servers.Service("stock-host", "U").fault())
    said = "(laprox: there; a host tier: asked for; write_back: asked for)"
    assert said in str(servers.Service("stock-host-back", "U").fault())
    info["tp_size"] = 2
    assert servers.Service("laprox-20", "U").fault(2) is None
    assert "(2 GPUs in place of 1)" in str(servers.Service("laprox-20", "U").fault())


@pytest.mark.parametrize(("done", "share"), [(3, 1.0), (2, 1.0), (1, 0.0)])
def test_the_share_of_pruned_requests_must_be_the_workloads(done, share):
    row = replace(workloads.workloads(True)["a"], pruned=share)
    before = {"requests": 1, "pruned": 1, "prunes": 2, "stage_seconds": {"score": 1.0}}
    before |= {"slots_freed": 10, "shrinks": 1, "shrunk_slots": 5, "released": {}}
    counts = {"requests": 4, "pruned": 1 + done, "prunes": 2 + done}
    counts |= {"slots_freed": 40, "shrinks": 3, "shrunk_slots": 9, "released": {"retracted": 2}}
    after = counts | {"stage_seconds": {"score": 1.5}}
    if done == 3:
        stage_ms = {"score": pytest.approx(500 / 3)}
        expected = {"pruned_share": 1.0, "retracted": 2, "stage_ms": stage_ms}
        expected |= {"slots_freed": 30, "shrinks": 2, "shrunk_slots": 4}
        assert run.pruning(row, before, after) == expected
    else:
        with pytest.raises(WorkloadError, match=f"{done} of 3 requests were pruned"):
            run.pruning(row, before, after)


def test_a_row_is_the_median_of_its_rounds_and_a_failure_stays(monkeypatch, tmp_path):
    record = Record(tmp_path / "x.json", False, workloads.workloads(False))
    rounds = []

    def measured(row, service, number, limit):
        rounds.append((row.name, service.name, number))
        if service.name == "stock" and number == 1:
            raise WorkloadError("it broke\nsomewhere")
        return {"output_tok_s": 10.0 + number**2}

    monkeypatch.setattr(run, "measure_round", measured)
    monkeypatch.setattr(run, "leave_idle", lambda service: None)
    row = workloads.workloads(False)["e"]
    for name in ("stock", "laprox"):
        run.run(row, SimpleNamespace(name=name, backend="fa3"), record, 1, 0, print)
    assert rounds == [("e", "stock", 0), ("e", "stock", 1), *(("e", "laprox", n) for n in range(3))]
    assert record.figures("e", "stock")["failed"] == "it broke"
    assert record.figures("e", "laprox")["output_tok_s"] == 11.0


@pytest.mark.parametrize(
    ("arguments", "line"),
    [
        ([], "needs a GPU; --quick runs anywhere"),
        (["--quick"], "nothing to measure: give --trace, --agents, --open-loop or --workload"),
        (["--quick", "--agents"], "how much load: give --at, --rate or --stretch"),
        (["--quick", "--agents", "--at", "0,2"], "--at takes numbers above 0"),
        (["--quick", "--agents", "--stretch", "2"], "says no times at which sessions begin"),
        (["--quick", "--trace", "/nowhere", "--at", "2"], "/nowhere is no trace that can be read"),
        (["--quick", "--workload", "a,z"], "no workload 'z'"),
        (["--quick", "--workload", "a", "--json", "/nowhere/serving.json"], "cannot be written: give a file"),
        (["--quick", "--workload", "a", "--url", "http://127.0.0.1:1"], "no SGLang server answers"),
    ],
)
def test_bad_input_gets_one_line(monkeypatch, capsys, arguments, line):
    monkeypatch.setattr("torch.cuda.is_available", lambda: False)
    assert main(["--server", "stock", *arguments]) == 2
    said = capsys.readouterr()
    assert said.err.startswith("serving: ") and line in said.err
    assert said.err.count("\n") == 1 and said.out == ""
    assert main(["--server", "fa3"]) == 2 and "no server 'fa3'; there are stock, " in capsys.readouterr().err


def test_servers_start_side_by_side_and_stop(tmp_path, monkeypatch):
    """Programs that answer like servers; one that dies is named at once, with the end of its log."""
    program = (
        "import sys, time, http.server as h\n"
        "class A(h.BaseHTTPRequestHandler):\n"
        "    def do_GET(self):\n"
        "        self.send_response(200); self.end_headers()\n"
        "if sys.argv[1] == 'dies': sys.exit('no such flag')\n"
        "if sys.argv[1] == 'hangs': time.sleep(600)\n"
        "h.HTTPServer(('127.0.0.1', int(sys.argv[-1])), A).serve_forever()\n"
    )
    (tmp_path / "sglang").mkdir()
    (tmp_path / "sglang" / "__init__.py").touch()
    (tmp_path / "sglang" / "launch_server.py").write_text(program)
    launches = [Launch(name, [name], tmp_path / f"{name}.log", seconds=20) for name in ("one", "two")]
    with serve_all(launches) as up:
        urls = [server.url for server in up]
        assert len(set(urls)) == 2 and all(requests.get(url + "/health").ok for url in urls)
    for url in urls:
        with pytest.raises(requests.RequestException):
            requests.get(url, timeout=2)
    broken = Launch("three", ["dies"], tmp_path / "three.log")
    slow = Launch("four", ["hangs"], tmp_path / "four.log")
    for beside in (launches[0], slow):
        started = time.monotonic()
        with pytest.raises(ServerError, match=r"three died(.|\n)*no such flag"), serve_all([beside, broken]):
            pass
        assert time.monotonic() - started < 60
    late = replace(slow, seconds=1)
    with pytest.raises(ServerError, match=r"four was not up after 1 seconds"), serve_all([late]):
        pass
