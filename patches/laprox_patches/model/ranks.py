"""The ranks of SGLang that share the heads of a layer: those of its attention's tensor parallelism."""

from sglang.srt.runtime_context import attn_tp_size_of, get_parallel

from laprox_sglang.ports import Parallel, ServerArgs
from laprox_sglang.ranks import ONE_RANK, Ranks


def ranks_here() -> Ranks:
    """In the process of one of them, once SGLang has connected them."""
    parallel: Parallel = get_parallel()
    if parallel.attn_tp_size == 1:
        return ONE_RANK
    # Not SGLang's tp_group: under attention data parallelism that one spans ranks with other requests.
    return Ranks(parallel.attn_tp_size, parallel.attn_tp_rank, parallel.attn_tp_group.all_reduce)


def planned_ranks(args: ServerArgs) -> int:
    """How many a server with these resolved arguments would have, in a process that is none of them."""
    size: int = attn_tp_size_of(args)
    # SGLang refuses sizes that do not divide, elsewhere.
    return max(1, size)
