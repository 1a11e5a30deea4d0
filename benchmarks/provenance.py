"""Where a results file can be, and what it says about where its figures were measured."""

import datetime
import importlib.metadata
import platform
import sys
from pathlib import Path
from typing import Any

import torch

PACKAGES = ("laprox-sglang", "sglang", "flashinfer-python", "triton")


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
    return datetime.datetime.now(datetime.UTC).date().isoformat()


def command() -> str:
    return " ".join(["python", *sys.argv])


def fault_of(path: Path | None) -> str | None:
    """Why no results can be written there, to be said before an hour is spent on them."""
    if path is None or (path.parent.is_dir() and not path.is_dir()):
        return None
    return f"{path} cannot be written: give a file in a folder that exists"


def origin() -> dict[str, Any]:
    """Head of a results file that one command wrote."""
    return {"chip": chip(), "versions": versions(), "date": today(), "command": command()}
