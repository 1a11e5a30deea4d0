"""Times every kernel at Llama-3.1-8B shapes against its floor and against the best alternative.

    python benchmarks/bench_kernels.py [--quick] [--json FILE] [--only score,decode]

The floor of a row is the larger of its bytes over the copy bandwidth and its operations over the
bf16 matrix rate, both measured in the same run. ``ratio_vs`` is a kernel's time over the
alternative's: below 1 it is the faster one. Needs a GPU; FlashInfer rows need ``flashinfer``.
"""

import argparse
import json
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from rich.console import Console
from rich.table import Table
from triton.testing import do_bench

import laprox_kernels as kernels
from laprox_kernels import Rows
from laprox_kernels.reference.decode import cell_index
from provenance import fault_of, origin

try:
    import flashinfer
except ImportError:
    flashinfer = None  # type: ignore[assignment]

# Every timed function is called before its loop goes on.
# ruff: noqa: B023

LAYERS, Q_HEADS, HEADS, DIM, DTYPE = 32, 32, 8, 128, torch.bfloat16
GROUP, CELLS, CELL_BYTES, SCALE = Q_HEADS // HEADS, LAYERS * HEADS, DIM * 2, DIM**-0.5


class Bench:
    """Measures, and keeps what it measured.

    Attributes:
        rows: one dictionary per case, as in the JSON file.
        copy_gbps: device copy, bytes read and written; the unit of every memory floor.
        matmul_tflops: bf16 product of random matrices.
    """

    def __init__(self, quick: bool) -> None:
        self.quick = quick
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


def random_pool(slots: int) -> tuple[torch.Tensor, torch.Tensor]:
    keys, values = (
        torch.empty(slots, LAYERS, HEADS, DIM, dtype=DTYPE, device="cuda").normal_() for _ in range(2)
    )
    return keys, values


def bench_score(bench: Bench) -> None:
    for tokens, window in [(32_768, 32)] if bench.quick else [(8_192, 32), (32_768, 32), (32_768, 64)]:
        keys, values = random_pool(tokens)
        row = torch.randperm(tokens, device="cuda")
        queries = torch.randn(LAYERS, window, Q_HEADS, DIM, dtype=DTYPE, device="cuda")
        weights = torch.randn(Q_HEADS, DIM, Q_HEADS * DIM, device="cuda") / 64
        gram = weights @ weights.transpose(1, 2)
        out = torch.empty(LAYERS, HEADS, tokens, device="cuda")

        def all_layers(version: Any = kernels.score, layers: int = LAYERS) -> None:
            for layer in range(layers):
                version(
                    queries[layer], keys[:, layer], values[:, layer], row, 0, gram, SCALE, 4, 7, out[layer]
                )

        ms = bench.time(all_layers)
        graph_ms = bench.time(all_layers, graph=True)
        torch_ms = bench.time(lambda: all_layers(kernels.reference.score, 1)) * LAYERS
        # Keys twice, values once; two passes over the logits, and one D x D form per value and query head.
        moved = LAYERS * tokens * HEADS * CELL_BYTES * 3
        operations = LAYERS * Q_HEADS * tokens * (2 * 2 * window * DIM + 2 * DIM * DIM)
        case = f"{LAYERS} layers, {tokens} tokens, W {window}"
        bench.record("score", case, ms, moved, operations, "torch", torch_ms)
        bench.record("score", case + ", in a graph", graph_ms, moved, operations)


def bench_select(bench: Bench) -> None:
    scores = torch.randn(LAYERS, HEADS, 32_768, device="cuda").mul_(2).exp_().div_(1e8)
    scores[..., -32:] = float("inf")
    flat = scores.flatten()
    for share in (0.05,) if bench.quick else (0.05, 0.2):
        k = CELLS * round(share * 32_768)
        ms = bench.time(lambda: kernels.select(scores, k))
        graph_ms = bench.time(lambda: kernels.select(scores, k), graph=True)
        moved = flat.nbytes + 8 * k
        case = f"{flat.numel()} scores, {share:.0%} kept"
        # No flashinfer.top_k here: at this size 0.6.15 did not return within a minute on an H200.
        # torch.topk breaks ties as it likes; sorted indices are the least that packing needs of it.
        topk_ms = bench.time(lambda: torch.topk(flat, k, sorted=False))
        sorted_ms = bench.time(lambda: torch.topk(flat, k, sorted=False).indices.sort())
        bench.record("select", case, ms, moved, 0, "torch.topk, unsorted, ties undefined", topk_ms)
        bench.record("select", case, ms, moved, 0, "torch.topk, indices sorted", sorted_ms)
        bench.record("select", case + ", in a graph", graph_ms, moved)


def bench_pack(bench: Bench) -> None:
    tokens = 32_768
    keys, values = random_pool(tokens)
    slots = torch.randperm(tokens, device="cuda")
    for share in (0.05,) if bench.quick else (0.05, 0.2):
        first = round(share * tokens)
        kept, _ = kernels.select(torch.rand(LAYERS, HEADS, tokens, device="cuda"), CELLS * first)
        ms = bench.time(lambda: kernels.pack(keys, values, slots, kept))
        source = slots[kept % tokens] * CELLS + kept // tokens

        def by_index() -> None:
            for pool in (keys, values):
                flat = pool.view(-1, DIM)
                flat[: source.numel()] = flat.index_select(0, source)

        moved = kept.numel() * 2 * 2 * CELL_BYTES + kept.nbytes
        bench.record(
            "pack",
            f"{tokens} tokens, {share:.0%} kept",
            ms,
            moved,
            0,
            "index_select + copy",
            bench.time(by_index),
        )


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


def flash_decode(indices: torch.Tensor, lengths: torch.Tensor, q_heads: int, heads: int) -> Any:
    """FlashInfer's decode, planned, with tensor cores as SGLang has it at these shapes; page size 1."""
    wrapper = flashinfer.BatchDecodeWithPagedKVCacheWrapper(
        torch.empty(512 * 2**20, dtype=torch.uint8, device="cuda"), "NHD", use_tensor_cores=True
    )
    indptr = torch.nn.functional.pad(lengths.cumsum(0), (1, 0)).int()
    wrapper.plan(
        indptr,
        indices,
        torch.ones_like(indptr[1:]),
        q_heads,
        heads,
        DIM,
        1,
        q_data_type=DTYPE,
        data_type=DTYPE,
    )
    return wrapper


def bench_decode(bench: Bench) -> None:
    sizes = [(32, 8192)] if bench.quick else [(32, 8192), (64, 1638), (8, 8192), (1, 8192)]
    keys, values = random_pool(32 * 8192)
    layer = 17
    for batch, average in sizes:
        queries = torch.randn(batch, Q_HEADS, DIM, dtype=DTYPE, device="cuda")
        slots = torch.arange(batch * average, device="cuda", dtype=torch.int32)
        dense_ms = 0.0
        if flashinfer is not None:
            stock = [pool[: batch * average, layer].contiguous()[:, None] for pool in (keys, values)]
            lengths = torch.full((batch,), average, dtype=torch.int32)
            wrapper = flash_decode(slots, lengths, Q_HEADS, HEADS)
            dense_ms = bench.time(lambda: wrapper.run(queries, tuple(stock)), graph=True)
            del stock
        moved = batch * average * HEADS * 2 * CELL_BYTES
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
            exact = int(rows.lengths(layer, HEADS).sum()) * 2 * CELL_BYTES
            # This layer may hold more or fewer keys than the average: the alternative is scaled to it.
            case = f"{batch} x {average}, {kind}"
            stock_name = "FlashInfer dense decode, stock layout, same bytes"
            vs = (stock_name, dense_ms * exact / moved) if dense_ms else ("", 0.0)
            bench.record("decode", case, ms, exact, 0, *vs)
            if flashinfer is not None and kind == "no compressed row":
                # What a server with this pool has instead.
                wrapper = flash_decode(rows.slots.flatten().int(), lengths, Q_HEADS, HEADS)
                views = keys[:, layer, None], values[:, layer, None]
                same_ms = bench.time(lambda: wrapper.run(queries, views), graph=True)
                bench.record("decode", case, ms, exact, 0, "FlashInfer, same pool and slots", same_ms)
        if flashinfer is not None:
            rows = packed_rows(batch, average, 0.75)
            bench_flash_route(bench, queries, keys, values, layer, rows, f"{batch} x {average}")
    rows = packed_rows(32, 8192, 0.75)
    ms = bench.time(lambda: kernels.plan_decode(rows, LAYERS, HEADS), graph=True)
    bench.record("decode plan", "32 rows, all layers, once a step", ms, rows.cu_cells.nbytes)


def bench_flash_route(
    bench: Bench,
    queries: torch.Tensor,
    keys: torch.Tensor,
    values: torch.Tensor,
    layer: int,
    rows: Rows,
    size: str,
) -> None:
    """FlashInfer over packed cells: (row, KV head) as rows of a batch with one KV head, a cell a page."""
    index, used = cell_index(rows, layer, LAYERS, HEADS)
    lengths = used.sum(-1).flatten()
    wrapper = flash_decode(index[used].int(), lengths.int().cpu(), GROUP, 1)
    cells = keys.view(-1, 1, 1, DIM), values.view(-1, 1, 1, DIM)
    flat = queries.view(-1, GROUP, DIM)
    ms = bench.time(lambda: wrapper.run(flat, cells), graph=True)
    ours = bench.time(lambda: kernels.decode(queries, keys, values, layer, rows, SCALE), graph=True)
    moved = int(lengths.sum()) * 2 * CELL_BYTES
    bench.record(
        "decode", f"{size}, packed, with its plan", ours, moved, 0, "FlashInfer over cells, planned", ms
    )


def bench_extend(bench: Bench) -> None:
    new = 512
    for batch, average in [(4, 8192)] if bench.quick else [(4, 8192), (1, 8192)]:
        total = batch * (average + new)
        keys, values = random_pool(total)
        rows = packed_rows(batch, average, 0.75)
        own = torch.arange(batch * average, total, device="cuda")
        cu_new = torch.arange(0, batch * new + 1, new, device="cuda")
        queries = torch.randn(batch * new, Q_HEADS, DIM, dtype=DTYPE, device="cuda")
        layer = 17
        ms = bench.time(lambda: kernels.extend(queries, keys, values, layer, rows, own, cu_new, new, SCALE))
        exact = int(rows.lengths(layer, HEADS).sum())
        pairs = exact * new + batch * HEADS * new * (new + 1) // 2
        operations = 4 * DIM * GROUP * pairs
        moved = (exact + batch * new * HEADS) * 2 * CELL_BYTES + 2 * queries.nbytes
        vs: tuple[str, float] = ("", 0.0)
        if flashinfer is not None:
            stock = keys[:, layer].contiguous()[:, None], values[:, layer].contiguous()[:, None]
            wrapper = flashinfer.BatchPrefillWithPagedKVCacheWrapper(
                torch.empty(512 * 2**20, dtype=torch.uint8, device="cuda"), "NHD", backend="fa2"
            )
            indptr = torch.arange(batch + 1, dtype=torch.int32) * (average + new)
            wrapper.plan(
                cu_new.int().cpu(), indptr, torch.randperm(total, device="cuda").int(),
                torch.ones(batch, dtype=torch.int32), Q_HEADS, HEADS, DIM, 1, causal=True, q_data_type=DTYPE,
            )  # fmt: skip
            dense = bench.time(lambda: wrapper.run(queries, stock))
            even = batch * HEADS * (average * new + new * (new + 1) // 2)
            vs = ("FlashInfer dense prefill (fa2), same operations", dense * pairs / even)
        bench.record(
            "extend", f"{batch} x {new} new over {average}, ragged ±75 %", ms, moved, operations, *vs
        )


BENCHES = {
    "score": bench_score,
    "select": bench_select,
    "pack": bench_pack,
    "decode": bench_decode,
    "extend": bench_extend,
}


def show(bench: Bench) -> None:
    table = Table(title=f"{torch.cuda.get_device_name()}: copy {bench.copy_gbps:.0f} GB/s, "
                  f"bf16 matmul {bench.matmul_tflops:.0f} TFLOP/s")  # fmt: skip
    for column in ("kernel", "case", "ms", "floor ms", "of floor", "against", "its ms", "ratio"):
        table.add_column(column, justify="left" if column in ("kernel", "case", "against") else "right")
    for row in bench.rows:
        against = [row["vs"], f"{row['vs_ms']:.3f}", f"{row['ratio_vs']:.2f}"] if row["vs"] else ["", "", ""]
        table.add_row(
            row["kernel"],
            row["case"],
            f"{row['ms']:.3f}",
            f"{row['floor_ms']:.3f}",
            f"{row['ratio_floor']:.2f}",
            *against,
        )
    Console(width=170).print(table)


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--quick", action="store_true", help="headline sizes only, fewer repetitions")
    parser.add_argument("--json", metavar="FILE", type=Path, help="also write the rows to FILE")
    parser.add_argument("--only", metavar="NAMES", help="comma-separated: " + ", ".join(BENCHES))
    arguments = parser.parse_args()
    names = arguments.only.split(",") if arguments.only else list(BENCHES)
    if unknown := [name for name in names if name not in BENCHES]:
        parser.error(f"--only: no kernel {', '.join(unknown)}; there are {', '.join(BENCHES)}")
    if fault := fault_of(arguments.json):
        parser.error(f"--json: {fault}")
    if not torch.cuda.is_available():
        parser.error("needs a GPU")
    torch.manual_seed(0)
    bench = Bench(arguments.quick)
    for name in names:
        BENCHES[name](bench)
        torch.cuda.empty_cache()
    show(bench)
    if arguments.json:
        record = {
            **origin(),
            "copy_gbps": round(bench.copy_gbps),
            "matmul_tflops": round(bench.matmul_tflops),
            "rows": bench.rows,
        }
        arguments.json.write_text(json.dumps(record, indent=1) + "\n")


if __name__ == "__main__":
    main()
