"""Processes that have SGLang and nothing of ours yet: each is a fork of one that has imported it.

An import of SGLang is 13 seconds of CPU, and what is tried in such a process far less. A case has its own
arguments, environment, folder, output and exit code, as it would under ``python -c``.
"""

import atexit
import json
import os
import subprocess
import sys
import tempfile
from functools import cache
from pathlib import Path
from typing import Any

from laprox_sglang.options.server import ENVIRONMENT

ROOT = Path(__file__).resolve().parent.parent

# What ``python -m sglang.launch_server`` does, with the case's arguments.
LAUNCH = """
import runpy
runpy.run_module("sglang.launch_server", run_name="__main__", alter_sys=True)
"""
# A case that hangs is ended by a signal: a negative exit code.
SECONDS = 180
# From the repository root, as ``python -m`` would be: a folder ``kernels`` lies in wait there.
ORIGIN = """
import gc, json, os, signal, sys, traceback
import sglang.srt.entrypoints.http_server, sglang.srt.managers.scheduler, sglang.srt.server_args

# Threads do not live on in a fork, and a lock that one holds stays locked.
assert len(os.listdir("/proc/self/task")) == 1
# A collection in a fork would write to what it shares with the others.
gc.freeze()
print("ready", flush=True)
while line := sys.stdin.readline():
    child = os.fork()
    if not child:
        break
    print(os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]), flush=True)
else:
    sys.exit()
case = json.loads(line)
signal.alarm(case["seconds"])
for stream, file in enumerate(case["files"]):
    os.dup2(os.open(file, os.O_RDWR), stream)
os.environ.clear()
os.environ.update(case["environment"])
os.chdir(case["folder"])
sys.argv = ["-c", *case["args"]]
code = 0
try:
    exec(case["code"], {"__name__": "__main__"})
except SystemExit as ended:
    code = ended.code or 0
    if not isinstance(code, int):
        print(code, file=sys.stderr)
        code = 1
except BaseException:
    traceback.print_exc()
    code = 1
sys.stdout.flush()
sys.stderr.flush()
# Without the interpreter's own end, which would walk through all of SGLang and copy its pages.
os._exit(code)
"""


@cache
def origin() -> subprocess.Popen[str]:
    """The process that all cases of a run are forks of."""
    # One thread: OpenMP's own do not survive a fork.
    environment = {name: value for name, value in os.environ.items() if name != ENVIRONMENT}
    process = subprocess.Popen(
        [sys.executable, "-c", ORIGIN],
        cwd=ROOT,
        env=environment | {"OMP_NUM_THREADS": "1"},
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    )
    atexit.register(process.kill)
    assert answer(process) == "ready"
    return process


def answer(process: subprocess.Popen[str]) -> str:
    assert process.stdout is not None
    return process.stdout.readline().strip()


def python(
    code: str, *args: str, folder: Path = ROOT, seconds: int = SECONDS, **environment: str
) -> subprocess.CompletedProcess[str]:
    """What ``python -c CODE ARGS`` would do in ``folder``, where SGLang is imported already."""
    process = origin()
    assert process.stdin is not None
    with tempfile.TemporaryDirectory() as place:
        out, err = Path(place) / "out", Path(place) / "err"
        out.touch()
        err.touch()
        case = {
            "code": code,
            "args": args,
            "folder": str(folder),
            "environment": {name: os.environ[name] for name in os.environ if name != ENVIRONMENT}
            | environment,
            "files": [os.devnull, str(out), str(err)],
            "seconds": seconds,
        }
        process.stdin.write(json.dumps(case) + "\n")
        process.stdin.flush()
        return subprocess.CompletedProcess(
            [sys.executable, "-c", code, *args], int(answer(process)), out.read_text(), err.read_text()
        )


def last_line(code: str, **environment: str) -> Any:
    """The JSON that ``code`` prints at its end."""
    done = python(code, **environment)
    assert done.returncode == 0, done.stderr[-3000:]
    return json.loads(done.stdout.splitlines()[-1])
