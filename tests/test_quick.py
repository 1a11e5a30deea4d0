"""``make quick`` has something of each kind, and leaves out what it says."""

import re

import pytest

from fresh import ROOT, python
from mutations import mutations

SELECTION = '-m "not full"'
COLLECT = "import pytest, sys; sys.exit(pytest.main(['--collect-only', '-q', *sys.argv[1:]]))"
# Of each at least one test; of the last ones none.
KINDS = (
    r"test_server_chat\.py", r"test_server_pruning\.py", r"test_server_turns\.py", r"test_starts\.py",
    r"test_version\.py", r"test_seams\.py", r"test_cli_doctor\.py", r"test_refusals\.py",
    r"test_documents\.py", r"test_bench_serving\.py",
    r"test_runtime\.py.*\[rust", r"test_runtime\.py.*\boff\b",
    r"test_runtime\.py.*-sync\b", r"test_runtime\.py.*-overlap\b", r"test_memory_properties\.py.*\[rust\]",
    *(rf"test_kernel_{name}\.py" for name in ("score", "select", "floor", "pack", "layout", "decode")),
)  # fmt: skip
LEFT_OUT = r"python\]|python-|test_server_soak|test_examples|test_kernel_compile"


@pytest.fixture(scope="module")
def selected() -> list[str]:
    # Options of the run around it would change what the collection prints.
    environment = {"TRITON_INTERPRET": "1", "CUDA_VISIBLE_DEVICES": "", "PYTEST_ADDOPTS": ""}
    done = python(COLLECT, "-m", "not full", "tests", **environment)
    assert done.returncode == 0, done.stdout[-3000:] + done.stderr[-3000:]
    return [line for line in done.stdout.splitlines() if "::" in line]


def test_there_is_something_of_each_kind(selected: list[str]) -> None:
    assert [kind for kind in KINDS if not any(re.search(kind, test) for test in selected)] == []


def test_what_is_left_out_is_left_out(selected: list[str]) -> None:
    tree = [test for test in selected if "test_runtime" in test or "test_memory" in test or "[" not in test]
    assert [test for test in tree if re.search(LEFT_OUT, test)] == []


def test_every_mutation_s_files_are_among_it(selected: list[str]) -> None:
    files = {test.partition("::")[0] for test in selected}
    named = {argument for x in mutations() for argument in x.pytest if argument.startswith("tests/")}
    assert named <= files


def test_make_selects_it() -> None:
    recipe = re.search(r"^quick:.*\n\t(.+)$", (ROOT / "Makefile").read_text(), re.MULTILINE)
    assert recipe is not None and SELECTION in recipe[1]
