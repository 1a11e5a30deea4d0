"""What a results file says about where its figures were measured."""

import datetime
import importlib.metadata
import platform
import sys
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


def origin() -> dict[str, Any]:
    """Head of a results file that one command wrote."""
    return {"chip": chip(), "versions": versions(), "date": today(), "command": command()}
