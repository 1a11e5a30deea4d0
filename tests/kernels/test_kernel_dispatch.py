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
kernels.pack(*pool, torch.arange(50), kept)
assert "triton" not in sys.modules
"""
    subprocess.run([sys.executable, "-c", code], check=True, timeout=120)


def test_a_gpu_gets_the_triton_version_of_every_kernel(seed, monkeypatch):
    """Without a GPU the interpreter stands for it: the modules are reached, with all their arguments."""
    monkeypatch.setattr(dispatch, "on_gpu", lambda device: True)
    reached = []
    for name in ("score", "select", "pack", "layout", "extend", "decode"):
        module = importlib.import_module(f"laprox_kernels.gpu.{name}")
        real = getattr(module, name)

        def spy(*arguments, name=name, real=real, **keywords):
            reached.append(name)
            return real(*arguments, **keywords)

        monkeypatch.setattr(module, name, spy)
    keys, values = random_pool(40, 2, 2, 64, DTYPES[1])
    queries = torch.randn(8, 4, 64, device=DEVICE, dtype=DTYPES[1])
    row = torch.arange(1, 40, device=DEVICE)
    gram = torch.eye(64, device=DEVICE).repeat(4, 1, 1)
    scores = torch.zeros((2, 2, 39), device=DEVICE)
    for layer in range(2):
        kernels = laprox_kernels
        kernels.score(queries, keys[:, layer], values[:, layer], row, 0, gram, 0.1, 2, 3, out=scores[layer])
    expected = torch.zeros_like(scores[1])
    reference.score(queries, keys[:, 1], values[:, 1], row, 0, gram, 0.1, 2, 3, expected)
    torch.testing.assert_close(scores[1], expected, rtol=2e-3, atol=1e-6)
    kept, _ = laprox_kernels.select(scores, 16)
    assert torch.equal(kept, reference.select(scores, 16)[0])
    packed = keys.view(-1, 64)[row[kept % 39] * 4 + kept // 39].clone()
    laprox_kernels.pack(keys, values, row, kept)
    assert torch.equal(keys[row[:4]].view(-1, 64), packed)
    rows, free = random_rows([[5], [12]], 40, 4)
    rows = rows._replace(segment_start=rows.segment_start[:, :0], cu_cells=rows.cu_cells[:, :0])
    own, cu_new = free[:2], torch.tensor([0, 1, 2], device=DEVICE)
    given = (queries[:2], keys, values, 1, rows)
    out = laprox_kernels.extend(*given, own, cu_new, 1, 0.1)
    assert error(out, reference.extend(*given, own, cu_new, 1, 0.1).double()) <= 2e-3
    laid = Rows(*(tensor.clone() for tensor in random_rows([[5, ("even", 1)]], 40, 4)[0]))
    table = torch.arange(24, dtype=torch.int32, device=DEVICE).view(2, 12)
    spans = torch.tensor([[1, 1, 6]], device=DEVICE)
    laprox_kernels.layout(
        table, torch.tensor([1], device=DEVICE), torch.tensor([10], device=DEVICE), spans, laid
    )
    assert laid.slots[0, :6].tolist() == [12, 18, 19, 20, 21, 13] and int(laid.dense[0]) == 5
    out = laprox_kernels.decode(*given, 0.1, laprox_kernels.plan_decode(rows, 2, 2))
    assert error(out, decode_oracle(*given, 0.1)) <= 2e-3
    assert set(reached) == {"score", "select", "pack", "layout", "extend", "decode"}


def test_serves_every_device(seed):
    keys, values = random_pool(40, 2, 2, 64, DTYPES[1])
    rows, _ = random_rows([[5, ("ragged", 9)], [12]], 40, 4)
    queries = torch.randn(2, 4, 64, device=DEVICE, dtype=DTYPES[1])
    plan = laprox_kernels.plan_decode(rows, 2, 2)
    assert (plan is not None) == GPU
    expected = decode_oracle(queries, keys, values, 1, rows, 0.1)
    assert error(laprox_kernels.decode(queries, keys, values, 1, rows, 0.1, plan=plan), expected) <= 2e-3
    assert error(laprox_kernels.decode(queries, keys, values, 1, rows, 0.1), expected) <= 2e-3
