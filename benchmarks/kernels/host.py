"""Copies between KV pool and host memory, both ways: by rows, as SGLang makes them, and by whole slots."""

from collections.abc import Callable
from typing import Any

import torch

from benchmarks.kernels.bench import DIM, DTYPE, HEADS, LAYERS, Bench

# The stage of SGLang's bulk copies: what is longer goes another, slower way.
PIECE_BYTES = 32 * 1024
SLOTS = (4_096, 32_768)
# More than is copied, so that the slots of a history lie scattered as a server's do.
POOL = 3 * SLOTS[-1]
# What is computed meanwhile, about as long as the larger copy.
PRODUCT, PRODUCTS = 8192, 60


def pieces_of(slot_bytes: int) -> int:
    """The fewest equal pieces of a slot that are no longer than ``PIECE_BYTES``."""
    return next(
        count
        for count in range(-(-slot_bytes // PIECE_BYTES), slot_bytes + 1)
        if slot_bytes % count == 0 and slot_bytes // count % 128 == 0
    )


def in_pieces(pool: torch.Tensor, count: int) -> torch.Tensor:
    """``[slots, L, H, D]`` as ``[slots · count, piece]``."""
    return pool.view(pool.shape[0] * count, -1)


def spread(slots: torch.Tensor, count: int) -> torch.Tensor:
    """Which pieces the slots are: int64 ``[slots · count]``."""
    return (slots[:, None] * count + torch.arange(count, device=slots.device)).flatten()


def bench_host(bench: Bench) -> None:
    """Needs SGLang, whose host pool and kernels are measured, and 26 GB of host memory."""
    from sglang.kernels.ops.kvcache.hicache import transfer_hicache_one_layer
    from sglang.srt.mem_cache.pool_host.mha import MHATokenToKVPoolHost

    from laprox_sglang.cache.pool import LaproxKVPool

    pool_class: Any = LaproxKVPool
    pool = pool_class(POOL, 1, DTYPE, HEADS, DIM, LAYERS, "cuda", False)
    info = pool.get_device_pool_infos()[0].buffer_info
    size = {"device_capacity_tokens": POOL, "start_layer": 0, "end_layer": LAYERS - 1}
    host = MHATokenToKVPoolHost(info, 1.0, 0, 1, "page_first", **size)
    count = pieces_of(pool.slot_bytes // 2)
    device_side = [in_pieces(part, count) for part in (pool.keys, pool.values)]
    host_side = [in_pieces(part, count) for part in (host.k_buffer, host.v_buffer)]

    def whole(to_device: bool, here: torch.Tensor, there: torch.Tensor) -> None:
        target, source = (device_side, host_side) if to_device else (host_side, device_side)
        indices = spread(here, count), spread(there, count)
        into, out_of = indices if to_device else indices[::-1]
        transfer_hicache_one_layer(
            *target, into, *source, out_of, element_dim=host_side[0].shape[1], page_size=1
        )

    for slots in SLOTS[:1] if bench.quick else SLOTS:
        here, there = (torch.randperm(POOL, device="cuda")[:slots] for _ in range(2))
        moved = slots * pool.slot_bytes

        def write(here: torch.Tensor = here, there: torch.Tensor = there) -> None:
            host.backup_from_device_all_layer(pool, there, here, "kernel")

        def load(here: torch.Tensor = here, there: torch.Tensor = there) -> None:
            for layer in range(LAYERS):
                host.load_to_device_per_layer(pool, there, here, layer, "kernel")

        ways: dict[str, tuple[Callable[[], None], bool]] = {"write": (write, False), "load": (load, True)}
        for name, (by_rows, to_device) in ways.items():
            rows_ms = bench.time(by_rows)
            bench.record(f"{name}, by rows", said(slots, moved, rows_ms), rows_ms, moved)
            ms = bench.time(lambda way=to_device, a=here, b=there: whole(way, a, b))  # type: ignore[misc]
            bench.record(
                f"{name}, whole slots", said(slots, moved, ms), ms, moved, vs="by rows", vs_ms=rows_ms
            )
        beside(bench, "write, by rows", slots, write)
        beside(bench, "write, whole slots", slots, lambda a=here, b=there: whole(False, a, b))  # type: ignore[misc]


def said(slots: int, moved: int, ms: float) -> str:
    return f"{slots} slots, {moved / ms / 1e6:.1f} GB/s"


def beside(bench: Bench, name: str, slots: int, copy: Callable[[], None]) -> None:
    """What a copy costs the matrix products of a prefill that is computed beside it."""
    a, b = (torch.randn(PRODUCT, PRODUCT, dtype=DTYPE, device="cuda") for _ in range(2))
    out, other = torch.empty_like(a), torch.cuda.Stream()

    def compute() -> None:
        for _ in range(PRODUCTS):
            torch.matmul(a, b, out=out)

    def both() -> None:
        other.wait_stream(torch.cuda.current_stream())
        with torch.cuda.stream(other):
            copy()
        compute()

    def timed(run: Callable[[], None]) -> float:
        """Of the products alone: the copy may end later."""
        torch.cuda.synchronize()
        first, last = (torch.cuda.Event(enable_timing=True) for _ in range(2))
        first.record()
        run()
        last.record()
        torch.cuda.synchronize()
        return first.elapsed_time(last)

    alone = min(timed(compute) for _ in range(5))
    ms = min(timed(both) for _ in range(5))
    work = 2 * PRODUCT**3 * PRODUCTS
    bench.record(f"products beside {name}", f"{slots} slots", ms, 0, work, vs="alone", vs_ms=alone)
