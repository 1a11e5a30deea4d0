"""Where a results file can be, and what it says about where its figures were measured."""

import datetime
import importlib.metadata
import os
import platform
import subprocess
import sys
from pathlib import Path
from typing import Any

import torch

PACKAGES = ("laprox-sglang", "sglang", "flashinfer-python", "triton")
ROOT = Path(__file__).resolve().parents[2]
# The commit that a copy without a git checkout was made of; with the suffix -dirty if it had changes.
COMMIT_VARIABLE = "LAPROX_COMMIT"


def chip() -> str:
    if torch.cuda.is_available():
        return torch.cuda.get_device_name()
    return f"CPU, {platform.machine()}"


def versions() -> dict[str, str]:
    found = {"python": platform.python_version(), "torch": torch.__version__, "cuda": str(torch.version.cuda)}
    for package in PACKAGES:
        try:
            found[package] = importlib.metadata.version(package)
        except importlib.metadata.PackageNotFoundError:
            found[package] = "absent"
    return found


def today() -> str:
    # Not datetime.UTC, which Python 3.10 lacks.
    return datetime.datetime.now(datetime.timezone.utc).date().isoformat()


def command() -> str:
    """The command line that runs, as a reader would type it from the repository root."""
    spec = getattr(sys.modules["__main__"], "__spec__", None)
    if spec is None:
        return " ".join(["python", *sys.argv])
    return " ".join(["python", "-m", spec.name.removesuffix(".__main__"), *sys.argv[1:]])


def revision(folder: Path) -> dict[str, Any]:
    """The commit that is measured.

    Returns:
        ``commit``: its hash, or "unknown"; ``dirty``: whether files differ from it, None if that is
        unknown. Results do not count, which a benchmark writes while it runs.
    """
    try:
        top, commit = git(folder, "rev-parse", "--show-toplevel", "HEAD").splitlines()
        if Path(top) == folder:
            changes = git(folder, "status", "--porcelain", "--", ".", ":!benchmarks/results")
            return {"commit": commit, "dirty": bool(changes)}
    except (OSError, ValueError, subprocess.CalledProcessError):
        pass
    given = os.environ.get(COMMIT_VARIABLE)
    if not given:
        return {"commit": "unknown", "dirty": None}
    return {"commit": given.removesuffix("-dirty"), "dirty": given.endswith("-dirty")}


def git(folder: Path, *arguments: str) -> str:
    done = subprocess.run(["git", *arguments], cwd=folder, capture_output=True, text=True, check=True)
    return done.stdout


# Taken at the start: what is committed while a benchmark runs is not what it measures.
REVISION = revision(ROOT)


def fault_of(path: Path | None) -> str | None:
    """Why no results can be written there, to be said before an hour is spent on them."""
    if path is None or (path.parent.is_dir() and not path.is_dir()):
        return None
    return f"{path} cannot be written: give a file in a folder that exists"


def origin() -> dict[str, Any]:
    """Head of a results file that one command wrote."""
    return {"chip": chip(), "versions": versions(), "date": today(), "command": command(), **REVISION}
