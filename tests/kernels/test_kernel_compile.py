"""What the interpreter does not show: that every kernel compiles, when, and fits."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

from laprox_kernels.dispatch import SHARED_MEMORY

pytestmark = pytest.mark.full

KERNELS = """
_plan_kernel _decode_kernel _merge_kernel _layout_kernel _save_kernel _pack_kernel rows_kernel
normaliser_kernel contribution_kernel pool_kernel _histogram_kernel _count_kernel _compact_kernel
_floor_kernel
""".split()
# What computes with a pool's cells; Triton reads e4m3 from sm_89 on.
READ_FP8 = {"_decode_kernel", "rows_kernel", "contribution_kernel"}


def run(script, *arguments):
    """What a script of this folder prints, in a process without the interpreter."""
    environment = {name: value for name, value in os.environ.items() if name != "TRITON_INTERPRET"}
    done = subprocess.run(
        [sys.executable, str(Path(__file__).with_name(script)), *map(str, arguments)],
        env=environment, capture_output=True, text=True, timeout=900,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr[-3000:]
    return done.stdout


def test_every_kernel_compiles_and_fits_into_the_shared_memory_asked_for():
    """And reads numbers of fp8 from there as words."""
    lines = [line.split() for line in run("compile_kernels.py").splitlines()]
    assert {(name, arch) for name, arch, *_ in lines} == {(k, arch) for k in KERNELS for arch in ("80", "90")}
    for name, arch, size, narrow in lines:
        assert int(size) <= (SHARED_MEMORY if arch == "80" else 227 * 1024), (name, arch, size)
        reads = arch == "90" and name in READ_FP8
        assert narrow == "0" if reads else narrow in "0-", (name, arch, narrow)


# Layers, KV heads, query heads of each, ranks: one head alone, an odd number of cells, whole groups.
@pytest.mark.parametrize(
    ("shape", "method"),
    [
        ((3, 2, 4, 1), ("model", 0.3, "bfloat16", 0.5)),
        ((5, 1, 3, 2), ("layer", 0.2, "float8_e4m3fn", 0.1)),
        ((2, 4, 16, 1), ("layer", 0.2, "bfloat16", 1.0)),
    ],
    ids=str,
)
def test_no_request_compiles_a_kernel(shape, method, seed):
    """Whatever its length, prefix, budget, view and batch: all was compiled at the start, and is bounded."""
    done = run("serve_anything.py", seed, *shape, 6_000, *method)
    number, *later = done.splitlines()
    assert int(number) < 60
    assert not later, later[0]
