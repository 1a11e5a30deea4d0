"""Starts that must fail with one line."""

import subprocess
import sys
from pathlib import Path

import pytest

from fresh import LAUNCH, python
from server import ROOT, command

COMPILED = ("--enable-laprox", "--enable-torch-compile")


@pytest.mark.parametrize(
    "flags, expected",
    [
        (("--enable-laprox", "--laprox-budget", "nan"), "budget nan is out of range"),
        (("--enable-laprox", "--enable-mixed-chunk"), "--enable-mixed-chunk does not go together"),
        (("--enable-laprox", "--page-size", "2"), "--page-size does not go together"),
        (COMPILED, "leave it out, or try it: --laprox-untested enable-torch-compile"),
        (("--enable-laprox", "--laprox-untested", "page-size"), "untested 'page-size' cannot be right"),
        (("--laprox-budget", "0.1"), "--laprox-budget without --enable-laprox does nothing"),
        (("--enable-laprox", "--laprox-events", "tcp://0.0.0.0:5557"), "reached from other machines"),
    ],
    ids=["budget", "mixed chunk", "page size", "torch compile", "untried", "forgotten flag", "events"],
)
def test_a_refused_start_says_why_in_one_line(flags: tuple[str, ...], expected: str) -> None:
    python_m, given = command(*flags)[:3], command(*flags)[3:]
    assert python_m == [sys.executable, "-m", "sglang.launch_server"]
    check_refused(python(LAUNCH, *given), expected)


def check_refused(done: subprocess.CompletedProcess[str], expected: str) -> None:
    assert done.returncode == 1
    lines = done.stderr.strip().splitlines()
    assert lines[-1].startswith("laprox: ") and expected in lines[-1]
    assert "Traceback" not in done.stderr


def test_sglang_serve_takes_the_flags_as_well() -> None:
    """In a process of its own from the start, as a user's is."""
    flags = command("--enable-laprox", "--enable-mixed-chunk")[3:]
    serve = [str(Path(sys.executable).with_name("sglang")), "serve", *flags]
    done = subprocess.run(serve, cwd=ROOT, capture_output=True, text=True, timeout=300)
    check_refused(done, "--enable-mixed-chunk does not go together")
