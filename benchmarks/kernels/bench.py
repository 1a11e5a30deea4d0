"""Times a kernel against its floor and an alternative, and makes the pools and rows that kernels run on."""

import json
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from triton.testing import do_bench

from benchmarks.harness.files import replacing
from benchmarks.harness.provenance import origin
from laprox_kernels import Rows

LAYERS, Q_HEADS, HEADS, DIM, DTYPE = 32, 32, 8, 128, torch.bfloat16
CELLS, SCALE = LAYERS * HEADS, DIM**-0.5
# Dtypes of the pool, by what stands behind a case.
POOLS = {"": DTYPE, ", fp8": torch.float8_e4m3fn}


class Bench:
    """Measures, and keeps what it measured.

    Args:
        path: file that has all of it after every row; None for none.

    Attributes:
        rows: one dictionary per case, as in the JSON file.
        copy_gbps: device copy, bytes read and written; the unit of every memory floor.
        matmul_tflops: bf16 product of random matrices.
    """

    def __init__(self, quick: bool, path: Path | None = None) -> None:
        self.quick, self._path, self._origin = quick, path, origin()
        self.rows: list[dict[str, Any]] = []
        source = torch.randn(2**30, dtype=DTYPE, device="cuda")
        target = torch.empty_like(source)
        self.copy_gbps = 2 * source.nbytes / self.time(lambda: target.copy_(source)) / 1e6
        a, b = (torch.randn(8192, 8192, dtype=DTYPE, device="cuda") for _ in range(2))
        self.matmul_tflops = 2 * 8192**3 / self.time(lambda: a @ b) / 1e9

    def time(self, function: Callable[[], Any], graph: bool = False) -> float:
        """Median milliseconds; of the replay of a CUDA graph if ``graph``."""
        function()
        torch.cuda.synchronize()
        if graph:
            captured = torch.cuda.CUDAGraph()
            with torch.cuda.graph(captured):
                function()
            function = captured.replay
        return float(do_bench(function, warmup=20, rep=100 if self.quick else 400, return_mode="median"))

    def record(
        self,
        kernel: str,
        case: str,
        ms: float,
        moved: float,
        operations: float = 0,
        vs: str = "",
        vs_ms: float = 0,
    ) -> None:
        floor = max(moved / self.copy_gbps / 1e6, operations / self.matmul_tflops / 1e9)
        self.rows.append(
            {
                "kernel": kernel,
                "case": case,
                "ms": round(ms, 4),
                "bytes": int(moved),
                "operations": int(operations),
                "floor_ms": round(floor, 4),
                "ratio_floor": round(ms / floor, 3),
                "vs": vs or None,
                "vs_ms": round(vs_ms, 4) if vs else None,
                "ratio_vs": round(ms / vs_ms, 3) if vs else None,
            }
        )
        print(self.rows[-1], file=sys.stderr, flush=True)
        if self._path is not None:
            peaks = {"copy_gbps": round(self.copy_gbps), "matmul_tflops": round(self.matmul_tflops)}
            with replacing(self._path) as draft:
                draft.write_text(json.dumps(self._origin | peaks | {"rows": self.rows}, indent=1) + "\n")


def random_pool(slots: int, dtype: torch.dtype) -> tuple[torch.Tensor, torch.Tensor]:
    keys, values = (
        torch.empty(slots, LAYERS, HEADS, DIM, dtype=DTYPE, device="cuda").normal_().to(dtype)
        for _ in range(2)
    )
    return keys, values


def cell_bytes(pool: torch.Tensor) -> int:
    """Of K or V of a cell."""
    return DIM * pool.element_size()


def packed_rows(batch: int, average: int, spread: float) -> Rows:
    """Every row one segment of ``average`` slots, nothing else; heads hold (1 ± spread) · average cells."""
    slots = torch.randperm(batch * average, dtype=torch.int32, device="cuda").view(batch, average)
    lengths = average * (1 + spread * (2 * torch.rand(batch, CELLS, dtype=torch.float64) - 1))
    bounds = lengths.cumsum(1)
    bounds = (bounds * (CELLS * average) / bounds[:, -1:]).round().long()
    cu = torch.nn.functional.pad(bounds, (1, 0))[:, None].cuda()
    zeros = torch.zeros(batch, dtype=torch.int64, device="cuda")
    return Rows(slots, zeros, zeros[:, None].clone(), cu)


def dense_rows(batch: int, length: int) -> Rows:
    slots = torch.randperm(batch * length, dtype=torch.int32, device="cuda").view(batch, length)
    zeros = torch.zeros(batch, 1, dtype=torch.int64, device="cuda")
    cu = torch.zeros(batch, 1, CELLS + 1, dtype=torch.int64, device="cuda")
    return Rows(slots, torch.full((batch,), length, device="cuda"), zeros, cu)
