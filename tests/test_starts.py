"""Starts that must fail with one line, and starts that are no server."""

import json
import subprocess
import sys
from pathlib import Path

import pytest

from laprox_sglang.needle import Task
from server import ROOT, command


@pytest.mark.parametrize(
    "flags, expected",
    [
        (("--enable-laprox", "--laprox-budget", "nan"), "budget nan is out of range"),
        (("--enable-laprox", "--enable-mixed-chunk"), "--enable-mixed-chunk does not go together"),
        (("--enable-laprox", "--page-size", "2"), "--page-size does not go together"),
        (("--enable-laprox", "--enable-lora"), "--enable-lora does not go together"),
        (("--laprox-budget", "0.1"), "--laprox-budget without --enable-laprox does nothing"),
    ],
    ids=["budget", "mixed chunk", "page size", "lora", "forgotten flag"],
)
def test_a_refused_start_says_why_in_one_line(flags: tuple[str, ...], expected: str) -> None:
    done = subprocess.run(command(*flags), cwd=ROOT, capture_output=True, text=True, timeout=120)
    assert done.returncode == 1
    lines = done.stderr.strip().splitlines()
    assert lines[-1].startswith("laprox: ") and expected in lines[-1]
    assert "Traceback" not in done.stderr


def test_engine() -> None:
    program = Path(__file__).with_name("engine_program.py")
    done = subprocess.run([sys.executable, program], cwd=ROOT, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr[-4000:]
    said = json.loads(done.stdout.strip().splitlines()[-1])
    assert said["pruned"]
    assert said["ids"][:4] == Task(7).batch(1, 800)[0].answer_ids()
