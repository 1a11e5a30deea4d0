"""The serving benchmark without a server: its arithmetic, its runs, its traces, its complaints."""

import argparse
import gzip
import http.server
import json
import sys
import threading
import time
from dataclasses import replace
from types import SimpleNamespace

import pytest
import requests
import torch
from rich.progress import Progress

from benchmarks.harness.server import RETURN_KEPT, Launch, ServerError, serve_all
from benchmarks.serving import figures, measure, meter, profile, run, servers, skew, workload, workloads
from benchmarks.serving.__main__ import main, starts
from benchmarks.serving.announce import announce
from benchmarks.serving.card import GIB, Card
from benchmarks.serving.client import Client, Reply, WorkloadError
from benchmarks.serving.record import Record
from laprox_sglang.options.server import Config
from laprox_sglang.scorers.allocators import keep


def reply(sent, *chunks, hits=0):
    """A reply with chunks (time, tokens)."""
    made = Reply(100, sent, list(chunks), hit_tokens=hits, done=True)
    made.ids = [7] * sum(tokens for _, tokens in chunks)
    return made


@pytest.fixture
def generate():
    """URL of a program that streams like ``/generate``; the first prompt token says how it misbehaves."""

    class Handler(http.server.BaseHTTPRequestHandler):
        def log_message(self, *given):
            pass

        def do_POST(self):
            body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
            ids, tokens = body["input_ids"], body["sampling_params"]["max_new_tokens"]
            self.send_response(200)
            self.end_headers()
            if ids[0] == 1:
                self.wfile.write(b'data: {"error": {"message": "no"}}\n\n')
                return
            if ids[0] == 2:
                time.sleep(3)
            sizes = [1, tokens - 1 - (ids[0] == 3)]
            for size in sizes:
                meta = {"prompt_tokens": len(ids), "completion_tokens": sum(sizes), "cached_tokens": 5}
                event = {"text": "", "output_ids": [9] * size, "meta_info": meta}
                self.wfile.write(b"data: " + json.dumps(event).encode() + b"\n\n")
            self.wfile.write(b"data: [DONE]\n\n")

    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        yield f"http://127.0.0.1:{server.server_port}"
        server.shutdown()


def test_the_client_sends_turns_and_counts_tokens(generate):
    client = Client(generate, 4, None)
    script = workload.Script([7, 7, 7], [[8, 8]])
    client.run([script, script], 30, clients=1)
    # The second prompt is the first, what was generated, and what the user adds.
    assert [reply.prompt_tokens for reply in client.replies] == [3, 9, 3, 9]
    assert client.done == 4 and client.tokens == 16
    assert all([tokens for _, tokens in reply.chunks] == [1, 3] for reply in client.replies)
    assert all(len(reply.gaps()) == 3 and reply.hit_tokens == 5 for reply in client.replies)


@pytest.mark.parametrize(
    ("first", "line"),
    [(1, "the server answered"), (2, "not done after 1 s: 0 of 1 replies"), (3, r"are \(1, 3, 3\)")],
)
def test_the_client_complains(generate, first, line):
    client = Client(generate, 4, None)
    with pytest.raises(WorkloadError, match=line):
        client.run([workload.Script([first])], 1)


def test_an_admission_ends_when_it_has_gone_far_enough(generate):
    client = Client(generate, 4, None)
    client.run([workload.Script([2])] * 3, 30, tick=lambda replies: len(replies) == 3)
    assert [reply.done for reply in client.replies] == [False] * 3


def test_percentiles_are_linear():
    assert figures.percentile([4, 1, 3, 2], 50) == 2.5
    assert figures.percentile([1, 2], 99) == pytest.approx(1.99)
    assert figures.percentile([5], 99) == 5


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
    dropped = [Reply(100, 0, [(start, 1)]) for start in (1, 2, 3)]
    assert figures.peak_concurrency(dropped) == 3


def test_figures_of_a_run():
    replies = [reply(10, (11, 1), (13, 4), hits=8), reply(10, (12, 1), (14, 2))]
    row = figures.figures(replies, [(11.5, 100), (12.5, 300), (13.5, 200)])
    assert row["output_tok_s"] == 8 / 4 and row["requests_s"] == 2 / 4
    assert (row["ttft_p50"], row["itl_p50"]) == (1500, 500)
    assert (row["slots_peak"], row["slots_mean"]) == (300, 200)
    # Requests at once by the replies, at the times of the samples.
    assert row["slots_over_time"] == [[1.5, 100, 1], [2.5, 300, 2], [3.5, 200, 1]]
    assert (row["prefix_hit_tokens"], row["input_tokens"], row["output_tokens"]) == (8, 200, 8)
    assert "output_tok_s" not in figures.figures(replies, [], complete=False)


def test_a_long_series_is_thinned_evenly():
    thin = figures.thin([[float(i)] for i in range(1001)])
    assert len(thin) <= 200 and thin[0] == [0.0] and thin[1][0] == thin[2][0] - thin[1][0]


def test_ratio_of_pairs_is_the_median_of_ratios():
    alternated = {"alternating": True}
    stock = figures.median_of([{"output_tok_s": value} for value in (100, 200, 400)]) | alternated
    laprox = figures.median_of([{"output_tok_s": value} for value in (90, 220, 400)]) | alternated
    assert stock["output_tok_s"] == 200
    assert figures.ratio(stock, laprox) == {"output_tok_s": 1.0}
    # Rounds of servers that ran one after the other are no pairs.
    assert figures.ratio(stock | {"alternating": False}, laprox) == {"output_tok_s": 1.1}
    # Rounds of another day did not alternate with these.
    other = laprox | {"date": "2026-01-01"}
    assert figures.ratio(stock, other) == {"output_tok_s": 1.1}
    assert figures.ratio({"itl_p50": 10.0, "ttft_p50": None}, {"itl_p50": 4.0}) == {"itl_p50": 0.4}
    lost = figures.ratio({"prefix_hit_tokens": 10}, {"prefix_hit_tokens": 0})
    assert lost == {"prefix_hit_tokens": 0.0}


def test_what_is_counted_is_compared_by_its_difference():
    stock, laprox = {"syncs": 1, "idle_ms": 0.25}, {"syncs": 1, "idle_ms": 0.5, "copies_to_host": 2}
    assert figures.added(stock, laprox) == {"syncs": 0, "idle_ms": 0.25}


def test_the_gauge_of_a_metrics_page():
    page = "# HELP sglang:num_used_tokens x\n"
    assert meter.slots_used(page) is None
    assert meter.slots_used(page + 'sglang:num_used_tokens{model_name="m",tp_rank="0"} 123.0\n') == 123


@pytest.mark.parametrize("quick", [True, False])
def test_workloads_send_what_they_say(quick):
    for row in workloads.workloads(quick).values():
        row = replace(row, requests=min(row.requests, 8))
        warm, scripts = row.scripts(0)
        assert len(warm) == max(1, row.groups) and len(scripts) == row.requests
        assert {len(script.prompt) for script in warm + scripts} == {row.shared + row.prompt}
        assert {script.turns for script in scripts} == {row.turns}
        assert scripts == row.scripts(0)[1]
        heads = {tuple(script.prompt[: row.shared or 8]) for script in scripts}
        assert len(heads) == (row.groups or (1 if row.shared else row.requests))


def test_every_short_prompt_of_a_pruned_row_can_be_pruned():
    table = workloads.workloads(False)
    short = [row for name, row in table.items() if name.split("-")[0] in ("short", "lone")]
    assert {row.prompt for row in short} == {300, 1024, 4096} and all(row.pruned == 1 for row in short)
    # Above --laprox-min-tokens, and with room for all that run at once.
    assert all(row.prompt >= 256 for row in short)
    assert all(row.clients * (row.prompt + row.output) < workloads.FIXED_SLOTS for row in short)


def test_a_smaller_card_gets_a_smaller_load():
    whole, half = workloads.workloads(False), workloads.workloads(False, 131_072, 0.5)
    assert (whole["b"].requests, half["b"].requests) == (35, 18)
    assert (whole["b-full"].requests, half["b-full"].requests) == (40, 20)
    assert (whole["c"].requests, half["c"].requests) == (128, 64)
    assert whole["short-1k"].requests == half["short-1k"].requests


H200 = Card("NVIDIA H200", 139.8 * GIB, 0.5 * GIB)
H100 = Card("NVIDIA H100 80GB HBM3", 79.2 * GIB, 0.5 * GIB)


def test_what_cards_have_room_for():
    # Measured: 879,841 slots on an H200.
    assert abs(H200.slots - 879_841) < 10_000 and H200.share == 1
    assert H200.fixed_slots == H100.fixed_slots == 262_144
    assert H200.holds(2, 262_144) and not H100.holds(2, 262_144) and H100.holds(1, 262_144)
    assert 0.45 < H100.share < 0.55
    assert H200.fault() is None and H100.fault() is None
    assert "24 GiB: 8B shapes with three prompts of 32K need" in str(Card("NVIDIA A10", 24 * GIB, 0).fault())
    assert "40 of the 79 GiB" in str(replace(H100, used=40 * GIB).fault())


def test_the_shared_prompts_need_no_package_datasets(monkeypatch):
    for name in [name for name in sys.modules if name.startswith("sglang.benchmark")]:
        monkeypatch.delitem(sys.modules, name)
    monkeypatch.setitem(sys.modules, "datasets", None)
    generator = workload.shared_prefix_generator()
    assert callable(generator.sample_generated_shared_prefix_requests)
    assert sys.modules.get("datasets") is None


def test_the_shipped_model_has_the_shapes_and_the_tokenizer():
    from laprox_tools.needle import MODEL_PATH

    folder = servers.LLAMA_8B
    assert (folder / "tokenizer.json").read_text() == (MODEL_PATH / "tokenizer.json").read_text()
    config = json.loads((folder / "config.json").read_text())
    shape = (
        "num_hidden_layers hidden_size num_attention_heads num_key_value_heads head_dim vocab_size".split()
    )
    assert [config[key] for key in shape] == [32, 4096, 32, 8, 128, 128256]


def test_turns_are_told_apart():
    replies = [Reply(100, 0, [(1 + turn, 1)], [7], 10 * turn, True, turn) for turn in (0, 0, 1, 2)]
    said = figures.by_turn(replies)
    assert said == {
        "ttft_p50_by_turn": [1000.0, 2000.0, 3000.0],
        "hit_tokens_by_turn": [0, 10, 20],
    }
    assert figures.by_turn(replies[:2]) == {}


@pytest.mark.parametrize("backend", [None, "triton"])
@pytest.mark.parametrize("quick", [True, False])
@pytest.mark.parametrize("pool", ["fixed", "full"])
def test_sglang_knows_the_flags_for_a_gpu(quick, pool, backend):
    from sglang.srt.server_args import ServerArgs

    parser = argparse.ArgumentParser()
    ServerArgs.add_cli_args(parser)
    machine = servers.Machine(H200, quick, backend)
    given = parser.parse_args(machine.flags("stock", pool))
    # Stock takes what it takes by default, unless it is told.
    assert given.attention_backend == backend and given.load_format == "dummy"
    assert given.max_total_tokens == machine.slots(pool)
    assert all(hasattr(given, key) for key in servers.SETTINGS)
    # The same but for what switches LaProx on.
    extra = machine.flags("laprox", pool)[len(machine.flags("stock", pool)) :]
    assert extra == ["--enable-laprox", "--laprox-budget", "0.05", *RETURN_KEPT]
    fp8 = parser.parse_args(machine.flags("stock-fp8", pool))
    assert (fp8.kv_cache_dtype, fp8.attention_backend) == ("fp8_e4m3", "flashinfer")


@pytest.mark.parametrize(("done", "share"), [(3, 1.0), (2, 1.0), (1, 0.0)])
def test_the_share_of_pruned_requests_must_be_the_workloads(done, share):
    row = replace(workloads.workloads(True)["a"], pruned=share)
    before = {"requests": 1, "pruned": 1, "unpruned": {}, "slots_freed": 10}
    after = {"requests": 5, "pruned": 1 + done, "unpruned": {"aborted": 1}, "slots_freed": 40}
    if done == 3:
        assert measure.pruning(row, before, after) == {"pruned_share": 1.0, "slots_freed": 30}
    else:
        with pytest.raises(WorkloadError, match=f"{done} of 3 requests were pruned"):
            measure.pruning(row, before, after)


@pytest.fixture
def runner(monkeypatch, tmp_path):
    """A runner on an H200 whose measurements are made up, and the order in which they were taken."""
    monkeypatch.setattr("benchmarks.harness.provenance.REVISION", {"commit": "abc", "dirty": False})
    order = []

    def measured(self, row, service, number, task):
        order.append((row.name, service.name, number))
        if (row.name, service.name, number) == ("e", "stock", 1):
            raise WorkloadError("it broke")
        return {"output_tok_s": 10.0 + number, "peak_concurrency": 7}

    monkeypatch.setattr(measure.Measure, "__call__", measured)
    monkeypatch.setattr(run, "abandon", lambda service: None)
    record = Record(tmp_path / "x.json", False, workloads.workloads(False))
    with Progress(disable=True) as progress:
        yield run.Runner(record, servers.Machine(H200, False), progress, False), order


def services(*names):
    return [SimpleNamespace(name=name, backend="fa3", slots=1, settings={}) for name in names]


def test_rounds_alternate_between_the_servers(runner):
    runner, order = runner
    table = workloads.workloads(False)
    runner.run_all([table["e"], table["b-itl"]], services("stock", "laprox"), {})
    e = [(name, number) for row, name, number in order if row == "e"]
    assert e == [("stock", 0), ("laprox", 0), ("stock", 1), ("laprox", 1), ("laprox", 2)]
    assert order[-1] == ("b-itl", "laprox", 0)
    assert runner.failures == ["e on stock: it broke"]
    assert runner.record.figures("e", "stock") is None
    assert runner.record.figures("e", "laprox")["output_tok_s"] == 11.0


def test_a_part_that_is_there_is_not_measured_again(runner, monkeypatch, capsys):
    runner, order = runner
    table = workloads.workloads(False)
    rows = [table["d"], table["e"], table["f"]]
    both = ["stock", "laprox"]
    plan = starts(runner, runner._machine, rows, [*both, "stock-fp8"])
    assert plan == [("fixed", both), ("full", ["stock"]), ("full", ["laprox"]), ("full", ["stock-fp8"])]
    announce(runner, rows, plan, 80)
    runner.run_all(rows[:1], services(*both), {})
    runner.run_all([table["f"]], services("stock"), {})
    runner.run_all([table["e"]], services("laprox"), {})
    # Rounds that are to alternate are measured on both sides or on none.
    assert runner.missing(table["e"], both, True) == both
    assert runner.missing(table["e"], both, False) == ["stock"]
    plan = starts(runner, runner._machine, rows, [*both, "stock-fp8"])
    assert plan == [("fixed", both), ("full", ["laprox"]), ("full", ["stock-fp8"])]
    order.clear()
    runner.run_all(rows[:1], services(*both), {})
    assert order == []
    # Another commit, or who asks for it.
    monkeypatch.setattr("benchmarks.harness.provenance.REVISION", {"commit": "def", "dirty": False})
    assert runner.missing(table["d"], both, True) == both
    monkeypatch.setattr("benchmarks.harness.provenance.REVISION", {"commit": "unknown", "dirty": None})
    runner.run_all(rows[:1], services(*both), {})
    assert len(order) == 2 and runner.missing(table["d"], both, True) == both


def test_an_h100_runs_one_server_after_the_other(runner):
    runner, _ = runner
    rows = [workloads.workloads(False)["e"]]
    plan = starts(runner, servers.Machine(H100, False), rows, ["stock", "laprox"])
    assert plan == [("fixed", ["stock"]), ("fixed", ["laprox"])]


def test_skewed_values_make_heads_keep_uneven_numbers():
    layers, heads, size, hidden, tokens = 2, 8, 128, 4096, 1000
    weights = skew.value_weights(servers.LLAMA_8B, layers)
    assert list(weights) == [f"model.layers.{i}.self_attn.v_proj.weight" for i in range(layers)]
    assert all(x.shape == (heads * size, hidden) and x.dtype == torch.bfloat16 for x in weights.values())
    hidden_states = torch.randn(tokens, hidden, generator=torch.Generator().manual_seed(1))
    values = torch.stack([hidden_states @ weight.float().T for weight in weights.values()])
    scores = values.view(layers, tokens, heads, size).norm(dim=-1).transpose(1, 2)
    scores = torch.stack([Config().method.pooling(layer) for layer in scores])
    mean = tokens // 20
    cells, _ = keep(scores.contiguous(), mean, Config().method.allocation, 0)
    kept = torch.zeros(scores.numel(), dtype=torch.bool).index_fill(0, cells, True).view_as(scores)
    spread = skew.spread(kept.sum(-1).tolist())
    assert spread[0] < 0.7 * mean and spread[-1] > 1.4 * mean


def test_a_spread_is_of_all_layers_heads():
    assert skew.spread([[9, 1], [5, 36], [7, 2]]) == [1, 1, 5, 9, 36]


def trace():
    """Two chunks and the select and pack of a prompt, then two decode steps in graphs. Microseconds."""
    events = []

    def launch(name, at, api="cudaLaunchKernel", **device):
        number = len(events)
        host = {"ph": "X", "cat": "cuda_runtime", "name": api, "ts": at, "dur": 1}
        events.append(host | {"args": {"correlation": number}})
        given = {"ph": "X", "cat": "kernel", "name": name, "args": {"correlation": number}}
        events.append(given | device)

    def call(name, at):
        events.append({"ph": "X", "cat": "cuda_runtime", "name": name, "ts": at, "dur": 1, "args": {}})

    launch("attention", 0, ts=10, dur=900)
    launch("reduce_kernel<ArgMaxOps>", 1, ts=910, dur=10)
    launch("attention", 2, ts=920, dur=1000)
    launch("rows_kernel", 3, ts=1920, dur=30)
    call("cudaStreamSynchronize", 4)
    launch("reduce_kernel<ArgMaxOps>", 5, ts=1950, dur=50)
    launch("_pack_kernel", 6, ts=2010, dur=40)
    call("cudaEventSynchronize", 7)
    launch("Memcpy DtoH (Device -> Pinned)", 8, "cudaMemcpyAsync", ts=2050, dur=5, cat="gpu_memcpy")
    for start in (2100, 2300):
        launch("decode", start / 200, "cudaGraphLaunch", ts=start, dur=100)
        launch("reduce_kernel<ArgMaxOps>", start / 200 + 1, ts=start + 100, dur=10)
    return [{"ph": "M", "name": "process_name"}, *events]


def test_reading_a_trace():
    found = profile.summary_of(trace())
    assert found["prefill_busy_ms"] == 1.99
    assert found["laprox_ms"] == 0.07
    assert found["kernels_ms"] == {"pack._pack_kernel": 0.04, "score_kernels.rows_kernel": 0.03}
    assert (found["first_decode_ms"], found["to_decode_ms"]) == (0.21, 0.1)
    assert found["idle_ms"] == 0.055
    assert (found["syncs"], found["copies_to_host"]) == (1, 1)
    assert found["syncs_by_name"] == {"cudaEventSynchronize": 1}


def test_a_trace_that_cannot_be_read(tmp_path):
    with pytest.raises(profile.TraceError, match="no trace"):
        profile.summarise(tmp_path)
    file = tmp_path / "1-TP-0.trace.json.gz"
    for text, what in [("{", "cannot be read"), ('{"traceEvents": []}', "0 kernels")]:
        with gzip.open(file, "wt") as out:
            out.write(text)
        with pytest.raises(profile.TraceError, match=what):
            profile.summarise(tmp_path)


@pytest.mark.parametrize(
    ("arguments", "line"),
    [
        ([], "needs a GPU; --quick runs anywhere"),
        (["--quick", "--workload", "a,z"], "no workload 'z'"),
        (["--quick", "--server", "fa3"], "no server 'fa3'; there are stock, laprox, stock-fp8"),
        (["--quick", "--json", "/nowhere/serving.json"], "cannot be written: give a file"),
        (["--quick", "--attach", "stock=http://127.0.0.1:1"], "no SGLang server answers"),
        (["--quick", "--attach", "other=http://127.0.0.1:1"], "not 'other'"),
    ],
)
def test_bad_input_gets_one_line(monkeypatch, capsys, arguments, line):
    monkeypatch.setattr("torch.cuda.is_available", lambda: False)
    assert main(arguments) == 2
    said = capsys.readouterr()
    assert said.err.startswith("serving: ") and line in said.err
    assert said.err.count("\n") == 1 and said.out == ""


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
