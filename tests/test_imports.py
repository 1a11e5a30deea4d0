"""Imports go one way, and no string names a module of another package, which would be an import unseen."""

import ast
import re
from collections.abc import Iterator
from pathlib import Path

import pytest

from documents import ROOT

# A package may import those behind it.
PACKAGES = {
    "laprox_tools": ROOT / "tools" / "laprox_tools",
    "laprox_patches": ROOT / "patches" / "laprox_patches",
    "laprox_sglang": ROOT / "laprox_sglang",
    "laprox_kernels": ROOT / "kernels" / "laprox_kernels",
}
ORDER = list(PACKAGES)
MODULE = re.compile(rf"({'|'.join(PACKAGES)})\.\w")


def trees(package: str) -> Iterator[tuple[Path, ast.Module]]:
    for path in PACKAGES[package].rglob("*.py"):
        yield path, ast.parse(path.read_text())


def imported(tree: ast.Module) -> Iterator[tuple[int, str]]:
    """Line and package of every import, those within functions among them."""
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            yield from ((node.lineno, alias.name.partition(".")[0]) for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            yield node.lineno, (node.module or "").partition(".")[0]


def named(tree: ast.Module) -> Iterator[tuple[int, str]]:
    """Line and package of every string that names one of our modules; docstrings are for people."""
    prose = {
        id(node.value)
        for node in ast.walk(tree)
        if isinstance(node, ast.Expr) and isinstance(node.value, ast.Constant)
    }
    for node in ast.walk(tree):
        if isinstance(node, ast.Constant) and isinstance(node.value, str) and id(node) not in prose:
            yield from ((node.lineno, package) for package in MODULE.findall(node.value))


@pytest.mark.parametrize("package", PACKAGES)
def test_imports_go_one_way(package: str) -> None:
    before = {*ORDER[: ORDER.index(package)], "benchmarks", "tests", "examples"}
    faults = [
        f"{path.relative_to(ROOT)}:{line} imports {other}"
        for path, tree in trees(package)
        for line, other in imported(tree)
        if other in before
    ]
    assert not faults


@pytest.mark.parametrize("package", PACKAGES)
def test_no_string_names_a_module_of_another_package(package: str) -> None:
    faults = [
        f"{path.relative_to(ROOT)}:{line} names {other}"
        for path, tree in trees(package)
        for line, other in named(tree)
        if other != package
    ]
    assert not faults
