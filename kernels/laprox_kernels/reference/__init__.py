"""Plain torch versions: what every other version is compared with, and what runs on a CPU."""

from laprox_kernels.reference.decode import decode
from laprox_kernels.reference.floor import floor
from laprox_kernels.reference.layout import layout
from laprox_kernels.reference.pack import pack
from laprox_kernels.reference.score import score
from laprox_kernels.reference.select import select

__all__ = ["decode", "floor", "layout", "pack", "score", "select"]
