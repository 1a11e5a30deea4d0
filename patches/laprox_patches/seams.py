"""Every place where SGLang is hooked once LaProx was asked for."""

from laprox_patches import (
    attention_backend,
    chat,
    decode_graphs,
    leak_check,
    memory_pool,
    metrics,
    output,
    replies,
    request,
    step,
    weights,
)
from laprox_patches.prefix_cache import register_cache
from laprox_patches.seam import register
from laprox_patches.version import check_ports

SEAMS = (
    *memory_pool.SEAMS,
    *attention_backend.SEAMS,
    *decode_graphs.SEAMS,
    *step.SEAMS,
    *metrics.SEAMS,
    *output.SEAMS,
    *replies.SEAMS,
    *leak_check.SEAMS,
    *chat.SEAMS,
    *request.SEAMS,
    *weights.SEAMS,
)


def register_all() -> None:
    """Registers every hook and the prefix cache; safe to call again.

    Raises:
        SeamError: SGLang is not the one we know.
    """
    check_ports()
    register(SEAMS)
    register_cache()
