"""Every place where SGLang is hooked once LaProx was asked for."""

from laprox_patches import (
    attention_backend,
    decode_graphs,
    leak_check,
    memory_pool,
    output,
    request,
    scheduler,
    weights,
)

SEAMS = (
    *memory_pool.SEAMS,
    *attention_backend.SEAMS,
    *decode_graphs.SEAMS,
    *scheduler.SEAMS,
    *output.SEAMS,
    *leak_check.SEAMS,
    *request.SEAMS,
    *weights.SEAMS,
)
