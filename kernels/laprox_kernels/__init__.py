"""Scoring, selection, packing and ragged attention over a KV pool ``[slots, L, H, D]``.

Imports nothing of SGLang, and Triton only when a GPU is used.
"""

from laprox_kernels.dispatch import (
    check_serving,
    decode,
    floor,
    layout,
    lengths_of_every_kind,
    pack,
    plan_decode,
    score,
    select,
)
from laprox_kernels.gpu.support import MAX_WINDOW, Unsupported, score_bytes
from laprox_kernels.places import count_scores, place, placing_bytes
from laprox_kernels.pooling import POOLINGS, pool
from laprox_kernels.rows import Rows

__all__ = [
    "MAX_WINDOW",
    "POOLINGS",
    "Rows",
    "Unsupported",
    "check_serving",
    "count_scores",
    "decode",
    "floor",
    "layout",
    "lengths_of_every_kind",
    "pack",
    "place",
    "placing_bytes",
    "plan_decode",
    "pool",
    "score",
    "score_bytes",
    "select",
]
