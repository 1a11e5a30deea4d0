"""Which version of a kernel serves which device: Triton on NVIDIA GPUs from sm_80, plain torch elsewhere."""

from collections.abc import Callable
from functools import cache, wraps
from importlib import import_module
from typing import Any, ParamSpec, TypeVar, cast

import torch

from laprox_kernels import reference
from laprox_kernels.gpu.support import (
    FP8,
    MAX_WINDOW,
    Unsupported,
    check,
    check_whole_pool,
    shared_memory,
)
from laprox_kernels.rows import Rows

P = ParamSpec("P")
T = TypeVar("T")

# What a block of sm_80 has: scoring a window of 64 takes nearly all. sm_86, sm_89 and sm_120 have less.
SHARED_MEMORY = 163 * 1024
# From here on Triton reads e4m3.
FP8_CAPABILITY = (8, 9)


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
        queries: ``[L, W, Hq, D]``, of any content.

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
    if keys.dtype == FP8 and torch.cuda.get_device_capability(keys.device) < FP8_CAPABILITY:
        name = torch.cuda.get_device_name(keys.device)
        raise Unsupported(f"dtype {keys.dtype} on {name} (served: NVIDIA from sm_89 on)")
    check("attention", keys, queries)
    check_whole_pool("attention", keys, values)
    if queries.shape[1] > MAX_WINDOW:
        raise Unsupported(f"score: window {queries.shape[1]} (served: up to {MAX_WINDOW})")


def lengths_of_every_kind(cells: int, shortest: int, longest: int) -> list[int]:
    """One length of every kind for which a Triton kernel that prunes a prompt is compiled of its own.

    Args:
        cells: L·H.
        shortest, longest: tokens that may be pruned of a prompt.
    """
    from laprox_kernels.gpu.select import variant

    return list({variant(cells * length): length for length in range(shortest, longest + 1)}.values())


def by_device(reference_version: Callable[P, T]) -> Callable[P, T]:
    """The reference, or on a GPU the Triton version: the function of that name in the module of that name.

    The first argument is a tensor, which tells the device.
    """
    name = reference_version.__name__

    @wraps(reference_version)
    def version(*arguments: P.args, **keywords: P.kwargs) -> T:
        chosen: Any = reference_version
        if on_gpu(cast(torch.Tensor, arguments[0]).device):
            chosen = getattr(import_module(f"laprox_kernels.gpu.{name}"), name)
        result: T = chosen(*arguments, **keywords)
        return result

    return version


score = by_device(reference.score)
select = by_device(reference.select)
floor = by_device(reference.floor)
pack = by_device(reference.pack)
layout = by_device(reference.layout)


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
    value_scale: float = 1.0,
) -> torch.Tensor:
    """See ``reference.decode``; ``plan`` is ``plan_decode`` of these rows, or None."""
    if not on_gpu(keys.device):
        return reference.decode(queries, keys, values, layer, rows, scale, value_scale)
    from laprox_kernels.gpu.decode import decode as version

    return version(queries, keys, values, layer, rows, scale, plan, value_scale)
