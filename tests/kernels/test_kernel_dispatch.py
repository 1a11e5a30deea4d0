"""The package's own names: the right version for the device, and Triton only where it is used."""

import subprocess
import sys

import torch
from kernel_cases import DEVICE, DTYPES, GPU, decode_oracle, error, random_pool, random_rows

import laprox_kernels


def test_a_cpu_never_imports_triton():
    code = """
import sys, torch, laprox_kernels as kernels
kept, cu = kernels.select(torch.rand(2, 2, 50), 8)
pool = torch.randn(60, 2, 2, 64), torch.randn(60, 2, 2, 64)
kernels.pack(*pool, torch.arange(50), kept)
assert "triton" not in sys.modules
"""
    subprocess.run([sys.executable, "-c", code], check=True, timeout=120)


def test_serves_every_device(seed):
    keys, values = random_pool(40, 2, 2, 64, DTYPES[1])
    rows, _ = random_rows([[5, ("ragged", 9)], [12]], 40, 4)
    queries = torch.randn(2, 4, 64, device=DEVICE, dtype=DTYPES[1])
    plan = laprox_kernels.plan_decode(rows, 2, 2)
    assert (plan is not None) == GPU
    expected = decode_oracle(queries, keys, values, 1, rows, 0.1)
    assert error(laprox_kernels.decode(queries, keys, values, 1, rows, 0.1, plan=plan), expected) <= 2e-3
    assert error(laprox_kernels.decode(queries, keys, values, 1, rows, 0.1), expected) <= 2e-3
