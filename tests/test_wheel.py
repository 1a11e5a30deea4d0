"""A wheel installs all that runs: built, installed and looked at away from the repository."""

import json
import os
import shutil
import subprocess
import sys
import tarfile
import zipfile
from pathlib import Path

import pytest

pytestmark = pytest.mark.full

ROOT = Path(__file__).resolve().parent.parent
PACKAGES = {
    "laprox_sglang": ROOT / "laprox_sglang",
    "laprox_kernels": ROOT / "kernels" / "laprox_kernels",
    "laprox_patches": ROOT / "patches" / "laprox_patches",
    "laprox_tools": ROOT / "tools" / "laprox_tools",
}
LOOK = """
import importlib, inspect, json
from sglang.srt.plugins import load_plugins_by_group
names = ("laprox_sglang", "laprox_kernels", "laprox_patches", "laprox_tools")
plugins = load_plugins_by_group("sglang.srt.plugins") | load_plugins_by_group("sglang.srt.platforms")
files = [importlib.import_module(name).__file__ for name in names]
print(json.dumps([files, {name: inspect.getfile(called) for name, (called, _) in plugins.items()}]))
"""


def run(*command: object, folder: Path, **environment: str) -> str:
    inherited = {key: value for key, value in os.environ.items() if not key.startswith("PYTHON")}
    done = subprocess.run(
        [*map(str, command)], cwd=folder, capture_output=True, text=True, env=inherited | environment
    )
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


def in_the_tree() -> set[str]:
    """What a package's folder holds, as a wheel names it."""
    return {
        str(Path(name) / file.relative_to(folder))
        for name, folder in PACKAGES.items()
        for file in folder.rglob("*")
        if file.is_file() and "__pycache__" not in file.parts
    }


@pytest.fixture(scope="module")
def built(tmp_path_factory) -> tuple[Path, Path]:
    """A source distribution, and the wheel that is made of it and of nothing else."""
    copy, out = tmp_path_factory.mktemp("copy") / "copy", tmp_path_factory.mktemp("built")
    # What lies beside the sources must not end up in a wheel, nor be missed: build/, egg-info, caches.
    shutil.copytree(ROOT, copy, ignore=shutil.ignore_patterns(".*", "__pycache__", "*.egg-info", "build"))
    run(sys.executable, "-m", "build", "--no-isolation", "--outdir", out, copy, folder=out)
    (source,), (wheel,) = out.glob("*.tar.gz"), out.glob("*.whl")
    return source, wheel


def test_a_wheel_holds_all_that_runs_and_nothing_else(built):
    _, wheel = built
    with zipfile.ZipFile(wheel) as archive:
        names = set(archive.namelist())
        about = {name.partition("/")[2]: name for name in names if ".dist-info/" in name}
        metadata = archive.read(about["METADATA"]).decode()
        licence = archive.read(about["licenses/LICENSE"]).decode()
    assert names - set(about.values()) == in_the_tree()
    assert licence == (ROOT / "LICENSE").read_text()
    assert "\nLicense-Expression: Apache-2.0\n" in metadata and "\nRequires-Dist: sglang==" in metadata


def test_sources_are_distributed_without_half_a_suite(built):
    source, _ = built
    with tarfile.open(source) as archive:
        names = {name.partition("/")[2] for name in archive.getnames()}
    assert {"README.md", "LICENSE", "pyproject.toml", "patches/laprox_patches/plugin.py"} <= names
    assert not any(name.startswith(("tests", "benchmarks")) for name in names)


def test_an_installed_wheel_is_found_by_sglang(built, tmp_path):
    target, elsewhere = tmp_path / "target", tmp_path / "elsewhere"
    elsewhere.mkdir()
    pip = (sys.executable, "-m", "pip", "install", "--no-deps", "--no-index", "--no-compile")
    run(*pip, "--target", target, built[1], folder=elsewhere)
    # In front of the environment's own, which may name this repository.
    said = run(target / "bin" / "laprox", "--help", folder=elsewhere, PYTHONPATH=str(target))
    assert all(command in said for command in ("doctor", "plan", "top", "explain"))
    said = run(sys.executable, "-P", "-c", LOOK, folder=elsewhere, PYTHONPATH=str(target))
    files, plugins = json.loads(said.splitlines()[-1])
    assert files == [str(target / name / "__init__.py") for name in PACKAGES]
    assert plugins["laprox"] == str(target / "laprox_patches" / "plugin.py")
    assert plugins["laprox_reference_cpu"] == str(target / "laprox_sglang" / "platform.py")
