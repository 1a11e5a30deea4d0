"""The package's own names: the right version for the device, and Triton only where it is used."""

import importlib
import subprocess
import sys

import torch
from kernel_cases import DEVICE, DTYPES, GPU, decode_oracle, error, random_pool, random_rows

import laprox_kernels
from laprox_kernels import Rows, dispatch, reference


def test_a_cpu_never_imports_triton():
    code = """
import sys, torch, laprox_kernels as kernels
kept, cu = kernels.select(torch.rand(2, 2, 50), 8)
pool = torch.randn(60, 2, 2, 64), torch.randn(60, 2, 2, 64)
kernels.pack(*pool, torch.arange(50), kept, torch.arange(50, 52))
assert "triton" not in sys.modules
"""
    subprocess.run([sys.executable, "-c", code], check=True, timeout=120)


def test_a_gpu_gets_the_triton_version_of_every_kernel(seed, monkeypatch):
    """Without a GPU the interpreter stands for it: the modules are reached, with all their arguments."""
    monkeypatch.setattr(dispatch, "on_gpu", lambda device: True)
    reached = []
    for name in ("score", "floor", "select", "pack", "layout", "decode"):
        module = importlib.import_module(f"laprox_kernels.gpu.{name}")
        real = getattr(module, name)

        def spy(*arguments, name=name, real=real, **keywords):
            reached.append(name)
            return real(*arguments, **keywords)

        monkeypatch.setattr(module, name, spy)
    keys, values = random_pool(40, 2, 2, 64, DTYPES[1])
    queries = torch.randn(2, 8, 4, 64, device=DEVICE, dtype=DTYPES[1])
    row = torch.arange(1, 35, device=DEVICE)
    gram = torch.eye(64, device=DEVICE).repeat(2, 4, 1, 1)
    scores, expected = torch.zeros((2, 2, 2, 34), device=DEVICE)
    scale = torch.full((2,), 0.1, device=DEVICE)
    given = (queries, keys, values, row, 0, gram, scale, 2, ("parabola", 3))
    sums = laprox_kernels.score(*given, out=scores)
    torch.testing.assert_close(sums, reference.score(*given, expected), rtol=2e-3, atol=1e-6)
    torch.testing.assert_close(scores, expected, rtol=2e-3, atol=1e-6)
    laprox_kernels.floor(scores, 11)
    assert (scores.isinf().sum(dim=-1) == 11).all()
    kept, _ = laprox_kernels.select(scores, 16)
    assert torch.equal(kept, reference.select(scores, 16)[0])
    packed = keys.view(-1, 64)[row[kept % 34] * 4 + kept // 34].clone()
    positions = torch.zeros_like(kept)
    laprox_kernels.pack(keys, values, row, kept, row[:4], staged=True, positions=positions)
    assert torch.equal(keys[row[:4]].view(-1, 64), packed) and torch.equal(positions, kept % 34)
    rows, _ = random_rows([[5], [12]], 40, 4)
    rows = rows._replace(segment_start=rows.segment_start[:, :0], cu_cells=rows.cu_cells[:, :0])
    given = (queries[0, :2], keys, values, 1, rows)
    laid = Rows(*(tensor.clone() for tensor in random_rows([[5, ("even", 1)]], 40, 4)[0]))
    table = torch.arange(24, dtype=torch.int32, device=DEVICE).view(2, 12)
    spans = torch.tensor([[1, 1, 6]], device=DEVICE)
    laprox_kernels.layout(
        table, torch.tensor([1], device=DEVICE), torch.tensor([10], device=DEVICE), spans, laid
    )
    assert laid.slots[0, :6].tolist() == [12, 18, 19, 20, 21, 13] and int(laid.dense[0]) == 5
    out = laprox_kernels.decode(*given, 0.1, laprox_kernels.plan_decode(rows, 2, 2))
    assert error(out, decode_oracle(*given, 0.1)) <= 2e-3
    assert set(reached) == {"score", "floor", "select", "pack", "layout", "decode"}


def test_serves_every_device(seed):
    keys, values = random_pool(40, 2, 2, 64, DTYPES[1])
    rows, _ = random_rows([[5, ("ragged", 9)], [12]], 40, 4)
    queries = torch.randn(2, 4, 64, device=DEVICE, dtype=DTYPES[1])
    plan = laprox_kernels.plan_decode(rows, 2, 2)
    assert (plan is not None) == GPU
    expected = decode_oracle(queries, keys, values, 1, rows, 0.1)
    assert error(laprox_kernels.decode(queries, keys, values, 1, rows, 0.1, plan=plan), expected) <= 2e-3
    assert error(laprox_kernels.decode(queries, keys, values, 1, rows, 0.1), expected) <= 2e-3
