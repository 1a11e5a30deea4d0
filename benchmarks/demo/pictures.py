"""Draws docs/top.svg and docs/explain.png: a real server with the 7M model at work."""

import subprocess
import sys
import tempfile
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from benchmarks.harness.server import CPU_FLAGS, RETURN_KEPT, Launch, serve_all
from laprox_tools.needle import MODEL_PATH, Task, to_ids

DOCS = Path(__file__).parents[2] / "docs"
FLAGS = ["--max-total-tokens", "24000", "--enable-laprox", "--laprox-budget", "0.1", *RETURN_KEPT]
SEED = 7
# More than are waited for: a picture of a server at work.
AT_ONCE, RUNNING, ANSWER = 6, 4, 3000
# Shared by them, and dense.
INSTRUCTIONS = 1000
# The picture of one prompt should be small enough to read.
LENGTH = 700


def main() -> None:
    with tempfile.TemporaryDirectory() as folder:
        arguments = ["--model-path", str(MODEL_PATH), *CPU_FLAGS, *FLAGS]
        launch = Launch("pictured", arguments, Path(folder) / "server.log")
        with serve_all([launch]) as (server,), ThreadPoolExecutor(AT_ONCE) as pool:
            task = Task(SEED)
            server.talk(task.conversation([50, 12, 12, 12]), 4)
            for sample in task.batch(3, 150):
                server.generate(sample.prompt_ids(), 4)
            instructions = task.batch(1, INSTRUCTIONS)[0].context
            for sample in task.batch(AT_ONCE, 1800):
                prompt = to_ids([*instructions, *sample.prompt()[1:]])
                pool.submit(server.generate, prompt, ANSWER, {"keep_prefix": INSTRUCTIONS})
            # Until a few of them have said something.
            while (
                server.laprox()["running"] < RUNNING
                or not server.info()["internal_states"][0]["last_gen_throughput"]
            ):
                time.sleep(0.2)
            laprox("top", server.url, "--once", "--svg", str(DOCS / "top.svg"))
            server.abort(every=True)
            sample = task.batch(1, LENGTH)[0]
            text, question = " ".join(sample.context[1:]), " ".join(sample.questions[0])
            out = str(DOCS / "explain.png")
            laprox("explain", server.url, "--prompt", text, "--question", question, "--out", out)


def laprox(*arguments: str) -> None:
    subprocess.run([sys.executable, "-m", "laprox_tools", *arguments], check=True)


if __name__ == "__main__":
    main()
