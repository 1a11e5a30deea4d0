"""What benchmarks and tests have in common: how aborts wait for their state, and what results say."""

import http.server
import json
import os
import resource
import subprocess
import sys
import threading
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from types import SimpleNamespace

import pytest

import benchmarks.checks.record as checks
import benchmarks.quality.record.results_file as quality
import benchmarks.serving.record as serving
from benchmarks.harness.client import Client, ClientError
from benchmarks.harness.provenance import REVISION, command, revision
from benchmarks.serving.load import workloads

ROOT = Path(__file__).resolve().parent.parent


@pytest.fixture
def server():
    """(URL, paths seen): its one request waits at the third look at its state, and ends when aborted."""
    seen, aborted = [], threading.Event()

    class Handler(http.server.BaseHTTPRequestHandler):
        def log_message(self, *given):
            pass

        def say(self, content):
            body = json.dumps(content).encode()
            self.send_response(200)
            self.send_header("Content-Length", str(len(body)))
            self.end_headers()
            self.wfile.write(body)

        def do_GET(self):
            seen.append(self.path)
            totals = {"waiting": int(seen.count(self.path) >= 3), "prefilling": 0}
            self.say({"internal_states": [{"laprox": totals}], "max_total_num_tokens": 1})

        def do_POST(self):
            body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
            seen.append((self.path, body["rid"]))
            if self.path == "/generate":
                aborted.wait(10)
            elif body["rid"] == "mine":
                aborted.set()
            self.say({"aborted": aborted.is_set()})

    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler) as running:
        threading.Thread(target=running.serve_forever, daemon=True).start()
        yield f"http://127.0.0.1:{running.server_port}", seen
        running.shutdown()


def test_an_abort_waits_for_its_state(server):
    url, seen = server
    assert Client(url).abort_when("waiting", "mine", {"rid": "mine"}) == {"aborted": True}
    looks = [place for place, path in enumerate(seen) if path == "/server_info"]
    assert seen.index(("/abort_request", "mine")) > looks[2] > seen.index(("/generate", "mine"))


def test_waiting_for_a_state_ends(server):
    Client(server[0]).wait_for("waiting", 10)
    with pytest.raises(ClientError, match="no request is prefilling after"):
        Client(server[0]).wait_for("prefilling", 0.1)


INTERRUPTED = """
import os, signal, subprocess, threading
from pathlib import Path
from benchmarks.harness import server

class Asleep(server.Server):
    def start(self):
        self._process = subprocess.Popen(["sleep", "600"], start_new_session=True)

    def wait(self, beside):
        threading.Timer(0.3, os.kill, (os.getpid(), signal.SIGTERM)).start()
        self._process.wait()

server.Server = Asleep
with server.serve_all([server.Launch("asleep", [], Path(os.devnull))]):
    pass
"""


def test_a_signal_ends_a_program_that_waits_for_its_servers_end():
    done = subprocess.run(
        [sys.executable, "-c", INTERRUPTED], cwd=ROOT, capture_output=True, text=True, timeout=60
    )
    assert done.stderr.splitlines()[-1:] == ["KeyboardInterrupt"], done.stderr


LONG = "x" * 5000
SIDES = (("stock", ""), ("laprox", LONG))


@contextmanager
def full_disk():
    """No file of this process grows beyond a page: a write ends in the middle, as on a full disk."""
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (4096, hard))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))


@pytest.mark.parametrize("benchmark", ["serving", "checks", "quality"])
def test_a_full_disk_ends_in_one_line_and_loses_nothing(tmp_path, benchmark):
    path = tmp_path / "results.json"
    if benchmark == "serving":
        rows = workloads.workloads(False)
        record = serving.Record(path, False, rows)
        puts = [partial(record.put, rows["e"], side, {"note": note}, "fa3") for side, note in SIDES]
    elif benchmark == "checks":
        record = checks.Record(path, False)
        puts = [partial(record.put, side, [], {side: note}, {}) for side, note in SIDES]
    else:
        record = quality.Results(path, False)
        puts = [partial(add_part, record, note) for _, note in SIDES]
    puts[0]()
    before = path.read_text()
    with full_disk(), pytest.raises(SystemExit) as stopped:
        puts[1]()
    assert str(stopped.value) == (
        f"{path} cannot be written (File too large); the results of before are still there"
    )
    assert path.read_text() == before and list(tmp_path.iterdir()) == [path]
    puts[1]()
    assert LONG in path.read_text()


def add_part(record, name):
    record.part(name, "tiny", {})
    record.save()


def git(folder, *arguments):
    identity = ("-c", "user.name=a", "-c", "user.email=a@b")
    subprocess.run(["git", *identity, *arguments], cwd=folder, check=True, capture_output=True)


def test_results_name_the_commit_they_measure(tmp_path, monkeypatch):
    monkeypatch.setenv("LAPROX_COMMIT", "abc-dirty")
    assert revision(tmp_path) == {"commit": "abc", "dirty": True}
    git(tmp_path, "init")
    git(tmp_path, "commit", "--allow-empty", "-m", "first")
    # A copy may lie on top of an older checkout: what it says about itself goes first.
    monkeypatch.setenv("LAPROX_COMMIT", "abc")
    assert revision(tmp_path.resolve()) == {"commit": "abc", "dirty": False}
    monkeypatch.delenv("LAPROX_COMMIT")
    checkout = revision(tmp_path.resolve())
    assert len(checkout["commit"]) == 40 and checkout["dirty"] is False
    # What a benchmark writes while it runs is no change to what it measures.
    results = tmp_path / "benchmarks" / "results"
    results.mkdir(parents=True)
    (results / "x.json").touch()
    assert revision(tmp_path.resolve()) == checkout
    (tmp_path / "code.py").touch()
    assert revision(tmp_path.resolve()) == checkout | {"dirty": True}
    # A folder within somebody else's checkout is not that checkout.
    assert revision(results.resolve()) == {"commit": "unknown", "dirty": None}
    assert set(REVISION) == {"commit", "dirty"}


def test_results_name_the_command_as_it_is_typed(monkeypatch):
    program = sys.modules["__main__"]
    monkeypatch.setattr(sys, "argv", ["/somewhere/benchmarks/serving/__main__.py", "--quick"])
    monkeypatch.setattr(program, "__spec__", None, raising=False)
    assert command() == "python /somewhere/benchmarks/serving/__main__.py --quick"
    monkeypatch.setattr(program, "__spec__", SimpleNamespace(name="benchmarks.serving.__main__"))
    assert command() == "python -m benchmarks.serving --quick"


def test_the_commands_are_found_from_the_root_and_nothing_is_shadowed():
    code = """
import importlib.util, json
import kernels
names = ["benchmarks." + name for name in ("demo", "kernels", "serving", "checks")]
places = [list(importlib.util.find_spec(name).submodule_search_locations) for name in names]
print(json.dumps([kernels.__file__, places, importlib.util.find_spec("serving") is None]))
"""
    # A path of the caller's may name the repository again.
    environment = {name: value for name, value in os.environ.items() if name != "PYTHONPATH"}
    done = subprocess.run(
        [sys.executable, "-c", code], cwd=ROOT, env=environment, capture_output=True, text=True, check=True
    )
    file, places, absent = json.loads(done.stdout)
    assert "site-packages" in file and absent
    assert places == [[str(ROOT / "benchmarks" / name)] for name in ("demo", "kernels", "serving", "checks")]
