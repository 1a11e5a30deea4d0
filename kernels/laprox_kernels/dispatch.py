"""Which version of a kernel serves which device: Triton on NVIDIA GPUs from sm_80, plain torch elsewhere."""

from functools import cache

import torch

from laprox_kernels import reference
from laprox_kernels.gpu.support import MAX_WINDOW, Unsupported, check, check_whole_pool, shared_memory
from laprox_kernels.reference.score import Form
from laprox_kernels.rows import Rows

# What a block of sm_80 has: scoring a window of 64 takes nearly all. sm_86, sm_89 and sm_120 have less.
SHARED_MEMORY = 163 * 1024


@cache
def on_gpu(device: torch.device) -> bool:
    """Whether the Triton kernels serve ``device``."""
    if device.type != "cuda" or torch.version.cuda is None:
        return False
    return torch.cuda.get_device_capability(device) >= (8, 0)


def check_serving(keys: torch.Tensor, values: torch.Tensor, queries: torch.Tensor) -> None:
    """Checks, before anything is served, that every kernel serves this pool and a window of queries.

    Args:
        keys, values: ``[slots, L, H, D]``.
        queries: ``[W, Hq, D]``, of any content.

    Raises:
        Unsupported: it names what is not served. On a CPU everything is.
    """
    if keys.device.type == "cpu":
        return
    if not on_gpu(keys.device):
        name = torch.cuda.get_device_name(keys.device) if keys.is_cuda else keys.device
        raise Unsupported(f"device {name} (served: NVIDIA from sm_80 on)")
    shared = shared_memory(keys.device)
    if shared < SHARED_MEMORY:
        name = torch.cuda.get_device_name(keys.device)
        raise Unsupported(
            f"device {name}, {shared} bytes of shared memory a block (served: from {SHARED_MEMORY} on)"
        )
    check("attention", keys, queries)
    check_whole_pool("attention", keys, values)
    if len(queries) > MAX_WINDOW:
        raise Unsupported(f"score: window {len(queries)} (served: up to {MAX_WINDOW})")


def score(
    queries: torch.Tensor,
    keys: torch.Tensor,
    values: torch.Tensor,
    row: torch.Tensor,
    start: int,
    gram: torch.Tensor,
    scale: float,
    sinks: int,
    pooling: int,
    out: torch.Tensor,
    form: Form = "mean",
) -> None:
    """See ``reference.score``."""
    if on_gpu(keys.device):
        from laprox_kernels.gpu.score import score as version
    else:
        version = reference.score
    version(queries, keys, values, row, start, gram, scale, sinks, pooling, out, form)


def select(scores: torch.Tensor, k: int) -> tuple[torch.Tensor, torch.Tensor]:
    """See ``reference.select``."""
    if on_gpu(scores.device):
        from laprox_kernels.gpu.select import select as version
    else:
        version = reference.select
    return version(scores, k)


def pack(
    keys: torch.Tensor,
    values: torch.Tensor,
    slots: torch.Tensor,
    kept: torch.Tensor,
    positions: torch.Tensor | None = None,
    scores: torch.Tensor | None = None,
    kept_scores: torch.Tensor | None = None,
) -> None:
    """See ``reference.pack``."""
    if on_gpu(keys.device):
        from laprox_kernels.gpu.pack import pack as version
    else:
        version = reference.pack
    version(keys, values, slots, kept, positions, scores, kept_scores)


def layout(
    table: torch.Tensor, table_rows: torch.Tensor, lengths: torch.Tensor, spans: torch.Tensor, rows: Rows
) -> None:
    """See ``reference.layout``."""
    if on_gpu(table.device):
        from laprox_kernels.gpu.layout import layout as version
    else:
        version = reference.layout
    version(table, table_rows, lengths, spans, rows)


def plan_decode(rows: Rows, layers: int, heads: int) -> torch.Tensor | None:
    """What ``decode`` derives from ``rows`` alone, for all layers: once a step instead of once a layer."""
    if not on_gpu(rows.slots.device):
        return None
    from laprox_kernels.gpu.decode import plan

    return plan(rows, layers, heads)


def decode(
    queries: torch.Tensor,
    keys: torch.Tensor,
    values: torch.Tensor,
    layer: int,
    rows: Rows,
    scale: float,
    plan: torch.Tensor | None = None,
) -> torch.Tensor:
    """See ``reference.decode``; ``plan`` is ``plan_decode`` of these rows, or None."""
    if not on_gpu(keys.device):
        return reference.decode(queries, keys, values, layer, rows, scale)
    from laprox_kernels.gpu.decode import decode as version

    return version(queries, keys, values, layer, rows, scale, plan)


def extend(
    queries: torch.Tensor,
    keys: torch.Tensor,
    values: torch.Tensor,
    layer: int,
    rows: Rows,
    own: torch.Tensor,
    cu_new: torch.Tensor,
    longest: int,
    scale: float,
) -> torch.Tensor:
    """See ``reference.extend``."""
    if on_gpu(keys.device):
        from laprox_kernels.gpu.extend import extend as version
    else:
        version = reference.extend
    return version(queries, keys, values, layer, rows, own, cu_new, longest, scale)
