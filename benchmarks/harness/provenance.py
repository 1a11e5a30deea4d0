"""Where a results file can be, and what it says about where its figures were measured."""

import datetime
import importlib.metadata
import os
import platform
import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import torch

PACKAGES = ("laprox-sglang", "sglang", "sglang-kernel", "flashinfer-python", "triton")
ROOT = Path(__file__).resolve().parents[2]
# The commit that a copy was made of, with the suffix -dirty if it had changes. It goes before what git says:
# a copy may lie on top of somebody's older checkout.
COMMIT_VARIABLE = "LAPROX_COMMIT"


def chip() -> str:
    if torch.cuda.is_available():
        return torch.cuda.get_device_name()
    return f"CPU, {platform.machine()}"


def card() -> str:
    """Short name of the chip for a file's name: ``h200``, ``cpu``."""
    words = re.findall(r"[A-Za-z]+\d+\w*", chip()) if torch.cuda.is_available() else []
    return words[0].lower() if words else "gpu" if torch.cuda.is_available() else "cpu"


def versions() -> dict[str, str]:
    found = {"python": platform.python_version(), "torch": torch.__version__, "cuda": str(torch.version.cuda)}
    for package in PACKAGES:
        try:
            found[package] = importlib.metadata.version(package)
        except importlib.metadata.PackageNotFoundError:
            found[package] = "absent"
    return found


def today() -> str:
    return datetime.datetime.now(datetime.UTC).date().isoformat()


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
    if given := os.environ.get(COMMIT_VARIABLE):
        return {"commit": given.removesuffix("-dirty"), "dirty": given.endswith("-dirty")}
    try:
        top, commit = git(folder, "rev-parse", "--show-toplevel", "HEAD").splitlines()
        if Path(top) == folder:
            changes = git(folder, "status", "--porcelain", "--", ".", ":!benchmarks/results")
            return {"commit": commit, "dirty": bool(changes)}
    except (OSError, ValueError, subprocess.CalledProcessError):
        pass
    return {"commit": "unknown", "dirty": None}


def git(folder: Path, *arguments: str) -> str:
    done = subprocess.run(["git", *arguments], cwd=folder, capture_output=True, text=True, check=True)
    return done.stdout


# Taken at the start: what is committed while a benchmark runs is not what it measures.
REVISION = revision(ROOT)


def results_file(path: Path | None, benchmark: str) -> Path | None:
    """The file that ``--json`` names; in a folder it is called by benchmark and chip."""
    return path / f"{benchmark}-{card()}.json" if path is not None and path.is_dir() else path


def fault_of(path: Path | None) -> str | None:
    """Why no results can be written there, to be said before an hour is spent on them."""
    if path is None or (path.parent.is_dir() and not path.is_dir()):
        return None
    return f"{path} cannot be written: give a file in a folder that exists"


def made_by() -> dict[str, Any]:
    """What each part of a results file says about the command that measured it."""
    return {"date": today(), "command": command(), "versions": versions(), **REVISION}


def origin() -> dict[str, Any]:
    """Head of a results file that one command wrote."""
    return {"chip": chip(), **made_by()}


def same_origin(part: dict[str, Any]) -> bool:
    """Whether a part of a results file was measured on this commit and these versions."""
    known = REVISION["commit"] != "unknown"
    return known and all(
        part.get(key) == value for key, value in {**REVISION, "versions": versions()}.items()
    )
