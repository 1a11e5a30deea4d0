"""Scoring, selection, packing and ragged decode attention over a KV pool ``[slots, L, H, D]``.

Imports nothing of SGLang.
"""

from laprox_kernels.reference.decode import decode
from laprox_kernels.reference.pack import pack
from laprox_kernels.reference.score import score
from laprox_kernels.reference.select import select
from laprox_kernels.rows import Rows

__all__ = ["Rows", "decode", "pack", "score", "select"]
