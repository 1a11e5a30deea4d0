"""The kernel that attends to packed cells, against FlashInfer over dense ones."""

from typing import Any

import torch

import laprox_kernels as kernels
from benchmarks.kernels.bench import (
    DIM,
    DTYPE,
    HEADS,
    LAYERS,
    POOLS,
    Q_HEADS,
    SCALE,
    Bench,
    cell_bytes,
    dense_rows,
    packed_rows,
    random_pool,
)

try:
    import flashinfer
except ImportError:
    flashinfer = None  # type: ignore[assignment]

# Every timed function is called before its loop goes on.
# ruff: noqa: B023


def flash_decode(indices: torch.Tensor, lengths: torch.Tensor, dtype: torch.dtype) -> Any:
    """FlashInfer's decode, planned, with tensor cores as SGLang has it at these shapes; page size 1."""
    wrapper = flashinfer.BatchDecodeWithPagedKVCacheWrapper(
        torch.empty(512 * 2**20, dtype=torch.uint8, device="cuda"), "NHD", use_tensor_cores=True
    )
    indptr = torch.nn.functional.pad(lengths.cumsum(0), (1, 0)).int()
    types = {"q_data_type": DTYPE, "data_type": dtype}
    wrapper.plan(indptr, indices, torch.ones_like(indptr[1:]), Q_HEADS, HEADS, DIM, 1, **types)
    return wrapper


def bench_decode(bench: Bench) -> None:
    in_16_bits: dict[str, float] = {}
    for what, dtype in POOLS.items():
        bench_pool(bench, dtype, what, in_16_bits)
        torch.cuda.empty_cache()
    rows = packed_rows(32, 8192, 0.75)
    ms = bench.time(lambda: kernels.plan_decode(rows, LAYERS, HEADS), graph=True)
    bench.record("decode plan", "32 rows, all layers, once a step", ms, rows.cu_cells.nbytes)


def bench_pool(bench: Bench, dtype: torch.dtype, what: str, in_16_bits: dict[str, float]) -> None:
    """Decode over a pool of one dtype.

    Args:
        what: stands behind the cases.
        in_16_bits: milliseconds of the cases without it; those of bf16 are added.
    """
    sizes = [(32, 8192)] if bench.quick else [(32, 8192), (64, 1638), (8, 8192), (1, 8192)]
    keys, values = random_pool(32 * 8192, dtype)
    layer, of_cell = 17, 2 * cell_bytes(keys)
    for batch, average in sizes:
        queries = torch.randn(batch, Q_HEADS, DIM, dtype=DTYPE, device="cuda")
        slots = torch.arange(batch * average, device="cuda", dtype=torch.int32)
        dense_ms = 0.0
        if flashinfer is not None:
            stock = [pool[: batch * average, layer].contiguous()[:, None] for pool in (keys, values)]
            lengths = torch.full((batch,), average, dtype=torch.int32)
            wrapper = flash_decode(slots, lengths, dtype)
            dense_ms = bench.time(lambda: wrapper.run(queries, tuple(stock)), graph=True)
            del stock
        moved = batch * average * HEADS * of_cell
        for kind, rows in (
            ("packed, ragged ±75 %", packed_rows(batch, average, 0.75)),
            ("packed, even", packed_rows(batch, average, 0.0)),
            ("no compressed row", dense_rows(batch, average)),
        ):
            plan = kernels.plan_decode(rows, LAYERS, HEADS)
            ms = bench.time(
                lambda: kernels.decode(queries, keys, values, layer, rows, SCALE, plan),
                graph=True,
            )
            cells = int(rows.lengths(layer, HEADS).sum())
            exact = cells * of_cell
            # This layer may hold more or fewer keys than the average: the alternative is scaled to it.
            alike = f"{batch} x {average}, {kind}"
            case = alike + what
            stock_name = "FlashInfer dense decode, stock layout, same bytes"
            vs = (stock_name, dense_ms * exact / moved) if dense_ms else ("", 0.0)
            bench.record("decode", case, ms, exact, 0, *vs)
            if dtype == DTYPE:
                in_16_bits[alike] = ms / cells
            else:
                bench.record("decode", case, ms, exact, 0, "bf16, as many cells", in_16_bits[alike] * cells)
            if flashinfer is not None and kind == "no compressed row":
                # What a server with this pool has instead.
                wrapper = flash_decode(rows.slots.flatten().int(), lengths, dtype)
                views = keys[:, layer, None], values[:, layer, None]
                same_ms = bench.time(lambda: wrapper.run(queries, views), graph=True)
                bench.record("decode", case, ms, exact, 0, "FlashInfer, same pool and slots", same_ms)
