"""The serving benchmark without a server: its arithmetic, its file, its traces, its complaints."""

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
from rich.progress import Progress

from benchmarks.harness.server import Launch, ServerError, serve_all
from benchmarks.serving import figures, meter, profile, run, servers, workloads
from benchmarks.serving.__main__ import main
from benchmarks.serving.client import Client, Reply, WorkloadError
from benchmarks.serving.record import Record, RecordError
from benchmarks.serving.record import table as results_table


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
    script = workloads.Script([7, 7, 7], [[8, 8]])
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
        client.run([workloads.Script([first])], 1)


def test_an_admission_ends_when_it_has_gone_far_enough(generate):
    client = Client(generate, 4, None)
    client.run([workloads.Script([2])] * 3, 30, tick=lambda replies: len(replies) == 3)
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
    row = figures.figures(replies, [(0.5, 100, 1, 1), (1.0, 300, 2, 0)])
    assert row["output_tok_s"] == 8 / 4 and row["requests_s"] == 2 / 4
    assert (row["ttft_p50"], row["itl_p50"]) == (1500, 500)
    assert (row["slots_peak"], row["slots_mean"], row["peak_running"]) == (300, 200, 2)
    assert (row["prefix_hit_tokens"], row["input_tokens"], row["output_tokens"]) == (8, 200, 8)
    assert "output_tok_s" not in figures.figures(replies, [], complete=False)


def test_a_long_series_is_thinned_evenly():
    thin = figures.thin([[float(i)] for i in range(1001)])
    assert len(thin) <= 200 and thin[0] == [0.0] and thin[1][0] == thin[2][0] - thin[1][0]


def test_ratio_of_pairs_is_the_median_of_ratios():
    stock = figures.median_of([{"output_tok_s": value} for value in (100, 200, 400)])
    laprox = figures.median_of([{"output_tok_s": value} for value in (90, 220, 400)])
    assert stock["output_tok_s"] == 200
    assert figures.ratio(stock, laprox) == {"output_tok_s": 1.0}
    # Rounds of another day did not alternate with these.
    other = laprox | {"date": "2026-01-01"}
    assert figures.ratio(stock, other) == {"output_tok_s": 1.1}
    assert figures.ratio({"itl_p50": 10.0, "ttft_p50": None}, {"itl_p50": 4.0}) == {"itl_p50": 0.4}
    lost = figures.ratio({"prefix_hit_tokens": 10}, {"prefix_hit_tokens": 0})
    assert lost == {"prefix_hit_tokens": 0.0}


def test_gauges_of_a_metrics_page():
    page = (
        "# HELP sglang:num_used_tokens x\n"
        'sglang:num_used_tokens{model_name="m",tp_rank="0"} 123.0\n'
        'sglang:num_running_reqs{model_name="m"} 4.0\nsglang:num_running_reqs_offline{a="b"} 9.0\n'
    )
    assert meter.parse_gauges(page) is None
    assert meter.parse_gauges(page + "sglang:num_queue_reqs 2.0\n") == (123, 4, 2)


def test_rows_of_parts_merge_into_one_file(tmp_path):
    table = workloads.workloads(False)
    path = tmp_path / "serving.json"
    first = Record(path, False, table)
    first.put(table["b"], "stock", {"output_tok_s": 100.0, "itl_p50": 10.0, "slots_over_time": [[0, 1]]}, "x")
    again = Record(path, False, table)
    again.put(table["b-itl"], "laprox", {"itl_p50": 4.0}, "x")
    again.put(table["a"], "laprox", {"output_tok_s": 5.0}, "x")
    again.put(table["b"], "laprox", {"output_tok_s": 300.0}, "x")
    content = json.loads(path.read_text())
    assert {"chip", "versions", "date", "commit", "dirty", "quick", "servers", "rows"} == set(content)
    rows = {row["workload"]: row for row in content["rows"]}
    assert list(rows) == ["b", "b-itl", "a"]
    assert rows["b"]["ratio"] == {"output_tok_s": 3.0} and "fa3" in rows["b"]["not_measured"]
    assert all("pytest" in rows["b"][server]["command"] for server in ("stock", "laprox"))
    # Only LaProx runs it; of stock's figures in b those stand in that fewer requests do not change.
    assert rows["b-itl"]["ratio"] == {"itl_p50": 0.4} and rows["b-itl"]["stock"]["taken_from"] == "b"
    assert set(rows["b-itl"]["stock"]) == {"itl_p50", "date", "taken_from"} and rows["a"]["stock"] is None
    assert results_table(again, ["a", "b", "b-itl"]).row_count == 4


@pytest.mark.parametrize("text", ["", "[]", "{}", '{"rows": 3}'])
def test_a_file_of_something_else_is_left_alone(tmp_path, text):
    path = tmp_path / "other.json"
    path.write_text(text)
    with pytest.raises(RecordError, match="does not hold results"):
        Record(path, False, {})
    assert path.read_text() == text


def test_a_quick_run_does_not_spoil_a_full_one(tmp_path):
    path = tmp_path / "serving.json"
    table = workloads.workloads(False)
    Record(path, False, table).put(table["b"], "stock", {}, "x")
    with pytest.raises(RecordError, match="give another file"):
        Record(path, True, table)


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


def test_the_shared_prompts_need_no_package_datasets(monkeypatch):
    for name in [name for name in sys.modules if name.startswith("sglang.benchmark")]:
        monkeypatch.delitem(sys.modules, name)
    monkeypatch.setitem(sys.modules, "datasets", None)
    generator = workloads.shared_prefix_generator()
    assert callable(generator.sample_generated_shared_prefix_requests)
    assert sys.modules.get("datasets") is None


def test_the_shipped_model_has_the_shapes_and_the_tokenizer():
    from laprox_sglang.needle import MODEL_PATH

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


@pytest.mark.parametrize("quick", [True, False])
@pytest.mark.parametrize("pool", ["fixed", "full"])
def test_sglang_knows_the_flags_for_a_gpu(quick, pool):
    from sglang.srt.server_args import ServerArgs

    parser = argparse.ArgumentParser()
    ServerArgs.add_cli_args(parser)
    machine = servers.Machine(True, quick)
    given = parser.parse_args(machine.flags("stock", pool))
    assert given.attention_backend == "flashinfer" and given.load_format == "dummy"
    assert given.max_total_tokens == machine.slots(pool)
    assert all(hasattr(given, key) for key in servers.SETTINGS)
    # The same but for what switches LaProx on.
    extra = machine.flags("laprox", pool)[len(machine.flags("stock", pool)) :]
    assert extra == ["--enable-laprox", "--laprox-budget", "0.05"]


@pytest.mark.parametrize(("done", "share"), [(3, 1.0), (2, 1.0), (1, 0.0)])
def test_the_share_of_pruned_requests_must_be_the_workloads(done, share):
    row = replace(workloads.workloads(True)["a"], pruned=share)
    before = {"requests": 1, "pruned": 1, "unpruned": {}, "slots_freed": 10}
    after = {"requests": 5, "pruned": 1 + done, "unpruned": {"aborted": 1}, "slots_freed": 40}
    if done == 3:
        assert run.pruning(row, before, after) == {"pruned_share": 1.0, "slots_freed": 30}
    else:
        with pytest.raises(WorkloadError, match=f"{done} of 3 requests were pruned"):
            run.pruning(row, before, after)


def test_rounds_alternate_between_the_servers(monkeypatch, tmp_path):
    table = workloads.workloads(False)
    record = Record(None, False, table)
    order = []

    def measure(runner, row, service, number, task):
        order.append((row.name, service.name, number))
        if (row.name, service.name, number) == ("e", "stock", 1):
            raise WorkloadError("it broke")
        return {"output_tok_s": 10.0 + number}

    monkeypatch.setattr(run.Runner, "_measure", measure)
    monkeypatch.setattr(run, "abandon", lambda service: None)
    services = [SimpleNamespace(name=name, backend="x", slots=1, settings={}) for name in ("stock", "laprox")]
    with Progress(disable=True) as progress:
        runner = run.Runner(record, servers.Machine(True, False), progress, tmp_path / "x.json")
        runner.run_all([table["e"], table["b-itl"]], services)
    e = [(name, number) for row, name, number in order if row == "e"]
    assert e == [("stock", 0), ("laprox", 0), ("stock", 1), ("laprox", 1), ("laprox", 2)]
    assert order[-1] == ("b-itl", "laprox", 0)
    assert runner.failures == ["e on stock: it broke"]
    assert record.figures("e", "stock") is None and record.figures("e", "laprox")["output_tok_s"] == 11.0


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
        (["--quick", "--server", "fa3"], "invalid choice"),
        (["--quick", "--json", "/nowhere/serving.json"], "cannot be written: give a file"),
        (["--quick", "--json", "."], "cannot be written: give a file"),
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
    """Two programs that answer like servers; one that dies is named with the end of its log."""
    program = (
        "import sys, http.server as h\n"
        "class A(h.BaseHTTPRequestHandler):\n"
        "    def do_GET(self):\n"
        "        self.send_response(200); self.end_headers()\n"
        "if sys.argv[1] == 'dies': sys.exit('no such flag')\n"
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
    broken = Launch("three", ["dies"], tmp_path / "three.log", seconds=20)
    with (
        pytest.raises(ServerError, match=r"three died(.|\n)*no such flag"),
        serve_all([launches[0], broken]),
    ):
        pass
