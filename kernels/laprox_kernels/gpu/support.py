"""What the Triton kernels can do, and how a caller learns that they cannot.

Integers that differ from request to request or step to step are kept out of Triton's specialization
(``do_not_specialize``): a server must not compile a kernel because a length is a multiple of 16.
"""

from functools import cache

import torch

from laprox_kernels.rows import Rows

HEAD_DIMS = (64, 128)
GROUPS = tuple(range(1, 17))
DTYPES = (torch.bfloat16, torch.float16)
# Of a pool only; queries keep the model's dtype.
FP8 = torch.float8_e4m3fn
MAX_WINDOW = 64
MEMBERS = 2  # query heads that one program scores, where a KV head has an even number of them
# Contributions of as many layers are made in one launch as fit in here; of one layer at least.
SCORE_BYTES = 2**26


class Unsupported(ValueError):
    """A shape, dtype or device that no kernel serves; the message is one line that names it."""


def check(kernel: str, pool: torch.Tensor, queries: torch.Tensor | None = None) -> None:
    """Raises ``Unsupported`` unless ``kernel`` serves this pool ``[…, H, D]`` and queries ``[…, Hq, D]``."""
    heads, dim = pool.shape[-2:]
    if pool.device.type == "cuda" and pool.dtype not in (*DTYPES, FP8):
        raise Unsupported(f"{kernel}: dtype {pool.dtype} on a GPU (served: bfloat16, float16, float8_e4m3fn)")
    if dim not in HEAD_DIMS:
        raise Unsupported(f"{kernel}: head dim {dim} (served: 64, 128)")
    if pool.stride(-1) != 1:
        raise Unsupported(f"{kernel}: stride {pool.stride(-1)} between a head's elements (served: 1)")
    if queries is None:
        return
    q_heads = queries.shape[-2]
    if q_heads % heads or q_heads // heads not in GROUPS:
        raise Unsupported(
            f"{kernel}: {q_heads} query heads over {heads} KV heads (served: groups of 1 to 16)"
        )
    served = DTYPES if pool.dtype == FP8 else (pool.dtype,)
    if queries.shape[-1] != dim or queries.dtype not in served:
        raise Unsupported(
            f"{kernel}: queries {queries.dtype}, head dim {queries.shape[-1]}, over a pool {pool.dtype}, "
            f"head dim {dim} (served: the same; over float8_e4m3fn queries bfloat16, float16)"
        )
    if queries.device != pool.device:
        raise Unsupported(f"{kernel}: queries on {queries.device} over a pool on {pool.device}")


def check_whole_pool(kernel: str, *pools: torch.Tensor) -> None:
    """Raises ``Unsupported`` unless each pool is a contiguous ``[slots, L, H, D]``."""
    for pool in pools:
        if pool.dim() != 4 or not pool.is_contiguous():
            raise Unsupported(
                f"{kernel}: pool {list(pool.shape)}, contiguous {pool.is_contiguous()} "
                "(served: contiguous [slots, L, H, D])"
            )


def members_of(q_heads: int, heads: int) -> int:
    """Query heads that one program scores."""
    return MEMBERS if q_heads // heads % MEMBERS == 0 else 1


def layer_bytes(q_heads: int, heads: int, length: int) -> int:
    """Contributions of one layer: a float32 of each program for each position."""
    return 4 * (q_heads // members_of(q_heads, heads)) * length


def score_bytes(q_heads: int, heads: int, longest: int) -> int:
    """Bound of what scoring a prompt of up to ``longest`` tokens holds beside its result."""
    return max(SCORE_BYTES, layer_bytes(q_heads, heads, longest))


def last_contiguous(tensor: torch.Tensor) -> torch.Tensor:
    return tensor if tensor.stride(-1) == 1 else tensor.contiguous()


def last_contiguous_rows(rows: Rows) -> Rows:
    """Rows as the kernels address them: every last dimension but ``dense``'s contiguous."""
    return Rows(
        last_contiguous(rows.slots),
        rows.dense,
        last_contiguous(rows.segment_start),
        last_contiguous(rows.cu_cells),
    )


def dot_dtype(pool: torch.dtype) -> torch.dtype:
    """What tiles of a pool, queries and weights are multiplied as.

    fp8 as float16, which holds every number of e4m3, and all that matters of bfloat16: a product of fp8 would
    round queries and weights, and no faster, since at 16 rows Triton makes one of float16 of it.
    """
    return torch.float16 if pool == FP8 else pool


def stages(pool: torch.dtype) -> int:
    """``num_stages`` of a loop over tiles of a pool, whose slots are loaded first.

    With 3 or 4 one tile is on its way, with 5 two: of fp8 as many bytes as one of 16 bits.
    """
    return 5 if pool == FP8 else 3


def precision(dtype: torch.dtype) -> str:
    """``input_precision`` of ``tl.dot``: TF32 would not keep what float32 promises."""
    return "ieee" if dtype == torch.float32 else "tf32"


@cache
def multiprocessors(device: torch.device) -> int:
    if device.type != "cuda":
        return 4  # Triton's interpreter: enough programs to exercise every split
    return int(torch.cuda.get_device_properties(device).multi_processor_count)


def shared_memory(device: torch.device) -> int:
    """Bytes of shared memory that a block can have."""
    from triton.runtime import driver

    return int(driver.active.utils.get_device_properties(device.index or 0)["max_shared_mem"])


def power_of_two(number: int) -> int:
    return 1 << max(0, number - 1).bit_length()
