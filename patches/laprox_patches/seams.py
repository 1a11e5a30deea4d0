"""Every place where SGLang is hooked once LaProx was asked for."""

from laprox_patches.model import attention_backend, decode_graphs, host_pool, memory_pool
from laprox_patches.model.prefix_cache import register_cache
from laprox_patches.scheduler import copies, leak_check, metrics, output, request, step, weights
from laprox_patches.seam import register
from laprox_patches.tokenizer import chat, header, replies
from laprox_patches.tokenizer import request as tokenized
from laprox_patches.version import check_ports

SEAMS = (
    *memory_pool.SEAMS,
    *host_pool.SEAMS,
    *attention_backend.SEAMS,
    *decode_graphs.SEAMS,
    *step.SEAMS,
    *metrics.SEAMS,
    *output.SEAMS,
    *replies.SEAMS,
    *leak_check.SEAMS,
    *chat.SEAMS,
    *header.SEAMS,
    *tokenized.SEAMS,
    *request.SEAMS,
    *weights.SEAMS,
    *copies.SEAMS,
)


def register_all() -> None:
    """Registers every hook and the prefix cache; safe to call again.

    Raises:
        SeamError: SGLang is not the one we know.
    """
    check_ports()
    register(SEAMS)
    register_cache()
