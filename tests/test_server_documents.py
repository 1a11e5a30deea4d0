"""The documents' commands, run as they stand there, against the server that the README starts on a CPU."""

import json
import os
import re
import shlex
import subprocess
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from benchmarks.harness.client import facts
from benchmarks.harness.server import RETURN_KEPT, Launch, Server
from documents import OUTPUT, ROOT, STARTS, Block, blocks, documents, quoted, section
from fresh import python
from laprox_tools.needle import MODEL_PATH, Task

pytestmark = pytest.mark.full

SECONDS = 120
README = ROOT / "README.md"
OPERATING = ROOT / "docs" / "operating.md"
# Commands and programs that do not run here, by how they begin, and where they run instead.
ELSEWHERE = {
    "make demo": "by hand, in a fresh clone: it installs 9 GB",
    "make quick": "a part of make test",
    "make mutations": "by hand: test_mutations tries its parts",
    "make test": "this very run is one",
    "make test-long": "by hand: half an hour. make test runs a few of its examples",
    "make lint": "by hand, before every commit",
    "make quality": "test_server_quality, in small",
    "pip install": "the Makefile, before the tests",
    "pytest": "make test runs all of them",
    "python -m benchmarks.quality": "test_server_quality, in small",
    "python -m benchmarks.models": "test_models, some of them",
    "python -m benchmarks.checks": "on a GPU; test_check_serving has its parts",
    "python -m sglang_router.launch_router": "test_examples, over two servers; test_documents has its flags",
    "python -m benchmarks.serving": "on a GPU; test_bench_serving has its parts",
    "from laprox_sglang.scorers import find": "test_add_a_scorer, which gives it layers and scores",
}
# In the folder of the page, whose files a flag may name.
DRY_RUN = "import sys; from laprox_tools.doctor import dry_run; dry_run.main(*sys.argv[1:])"
ALL = [block for page in documents() for block in blocks(page)]
STARTED = [block for block in ALL if block.starts_a_server]


def elsewhere(line: str) -> str | None:
    """Which entry of ``ELSEWHERE`` a command is, if any."""
    fits = [start for start in ELSEWHERE if f"{line} ".startswith(f"{start} ")]
    return max(fits, key=len, default=None)


def runnable(block: Block) -> str:
    """What is left of a block to be run here."""
    if block.language == "python":
        return "" if elsewhere(block.code.splitlines()[0]) else block.code
    return "\n".join(line for line in block.code.splitlines() if not elsewhere(line))


def to_run() -> list[Block]:
    """What is run here; what stands in several documents once."""
    code = [block for block in ALL if block.language not in OUTPUT and block not in STARTED]
    return list({block.code: block for block in code if runnable(block).strip()}.values())


def cpu_start() -> Block:
    [block] = [block for block in STARTED if block.page == README and "--device cpu" in block.code]
    return block


class Reader:
    """Somebody who has a server, a shell, and a folder for each page."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.events = f"ipc://{folder}/events.socket"
        tools = folder / "bin"
        tools.mkdir()
        # As the package installs it; an environment may have been made before there was the command.
        command = tools / "laprox"
        command.write_text(f'#!/bin/sh\nexec {shlex.quote(sys.executable)} -m laprox_tools "$@"\n')
        command.chmod(0o755)
        path = [str(tools), str(Path(sys.executable).parent), os.environ["PATH"]]
        modules = [str(ROOT), *filter(None, [os.environ.get("PYTHONPATH")])]
        self.environment = os.environ | {
            "PATH": os.pathsep.join(path),
            "PYTHONPATH": os.pathsep.join(modules),
            "MODEL": str(MODEL_PATH),
            "EVENTS": self.events,
            "CUDA_VISIBLE_DEVICES": "",
        }
        self.server = Server(
            Launch(
                "of the README",
                [*self.flags(cpu_start()), "--enable-metrics", "--laprox-events", self.events, *RETURN_KEPT],
                folder / "server.log",
            )
        )
        self.environment["URL"] = self.server.url

    def flags(self, block: Block) -> list[str]:
        """The arguments of a command that starts a server, behind the program's name."""
        [line] = re.sub(r"\\\n", "", block.code).strip().splitlines()
        start = next(start for start in STARTS if line.startswith(start))
        given = shlex.split(line.removeprefix(start).replace("$MODEL", str(MODEL_PATH)))
        return given if given[0].startswith("-") else ["--model-path", *given]

    def place(self, page: Path) -> Path:
        """Where a page's commands run: those of the root in the root, where they leave nothing behind."""
        if page.parent == ROOT:
            return ROOT
        folder = self.folder / page.stem
        folder.mkdir(exist_ok=True)
        for name, code in re.findall(r"file `([\w.]+)`[^`]*```python\n(.*?)```", page.read_text(), re.DOTALL):
            (folder / name).write_text(code)
        return folder

    def run(self, block: Block) -> str:
        """What a block prints.

        Raises:
            AssertionError: it fails.
        """
        shell = ["bash", "-euo", "pipefail", "-c"] if block.language == "bash" else [sys.executable, "-c"]
        done = subprocess.run(
            [*shell, runnable(block)],
            cwd=self.place(block.page),
            env=self.environment,
            capture_output=True,
            text=True,
            timeout=SECONDS,
        )
        assert done.returncode == 0, f"{block.name}\n{done.stdout}\n{done.stderr}"
        return done.stdout


@pytest.fixture(scope="module")
def reader(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Reader]:
    reader = Reader(tmp_path_factory.mktemp("reader"))
    with reader.server:
        yield reader


@contextmanager
def traffic(reader: Reader) -> Iterator[None]:
    """Requests as long as it lasts: somebody waits for what happens to them."""
    over = threading.Event()

    def ask() -> None:
        while not over.wait(0.5):
            reader.server.generate(Task(1).batch(1, 400)[0].prompt_ids(), 4)

    thread = threading.Thread(target=ask)
    thread.start()
    try:
        yield
    finally:
        over.set()
        thread.join()


@pytest.mark.parametrize("block", to_run(), ids=lambda block: block.name)
def test_what_a_page_says_to_run_runs(block: Block, reader: Reader) -> None:
    if "zmq" in block.code:
        with traffic(reader):
            assert "how='finished'" in reader.run(block)
        return
    said = reader.run(block)
    if block.page == README and block.language == "python":
        assert "'pruned': True" in said
    if block.page.name == "turns.md":
        first, second = re.findall(r"'prompt_tokens': (\d+), 'cached_tokens': (\d+)", said)
        assert int(second[1]) > 0.9 * int(first[0])


def test_what_runs_elsewhere_is_in_a_document() -> None:
    lines = [line for block in ALL for line in block.code.splitlines()]
    assert {elsewhere(line) for line in lines} - {None} == set(ELSEWHERE)


def test_what_starts_a_server_would_start(reader: Reader) -> None:
    """As ``laprox doctor -- COMMAND LINE`` says; that of the tests' own server runs."""
    asked = {}
    for number, block in enumerate(STARTED):
        flags = on_a_cpu(reader.flags(block))
        report = reader.folder / f"report-{number}.json"
        if block != cpu_start():
            asked[" ".join(flags)] = (str(report), reader.place(block.page), flags)
    assert asked
    for report, folder, flags in asked.values():
        done = python(DRY_RUN, report, *flags, folder=folder, **reader.environment)
        assert done.returncode == 0, done.stderr
        findings = json.loads(Path(report).read_text())
        assert [x["reason"] for x in findings if x["status"] == "error"] == [], flags
        assert findings[-2]["reason"].startswith("a server would start: device cpu, torch_native, ")


def on_a_cpu(flags: list[str]) -> list[str]:
    return flags if "--device" in flags else [*flags, "--device", "cpu"]


def test_the_start_line_is_the_one_in_the_page(reader: Reader) -> None:
    log = reader.server.launch.log.read_text()
    [said] = [block.code for block in blocks(OPERATING) if "is on: SGLang" in block.code]
    for piece in " ".join(said.split()).split("…"):
        for line in re.split(r" (?=LaProx \S+ is on)", piece):
            assert line.strip() in log


def test_replies_say_nothing_that_is_not_in_the_page(reader: Reader) -> None:
    reply = reader.server.generate(Task(2).batch(1, 500)[0].prompt_ids(), 4, {"return_kept": True})
    assert set(facts(reply)) <= quoted(section(OPERATING, "What a request is told"))
    totals = set(reader.server.laprox()) - {"slots"}
    assert totals <= quoted(section(OPERATING, "Watching it"))
