"""For ``--laprox-scorer failing_rank:laprox``: LaProx, whose kernel finds no memory on the second rank for a
prompt of more than 1,500 tokens."""

import torch
from sglang.srt.runtime_context import get_parallel

import laprox_kernels
from laprox_sglang.scorers.laprox import laprox

__all__ = ["laprox"]

MOST = 1500
score = laprox_kernels.score


def fail(*arguments, **keywords):
    row = arguments[3]
    if get_parallel().attn_tp_rank == 1 and len(row) > MOST:
        raise torch.OutOfMemoryError("made up by a test")
    return score(*arguments, **keywords)


laprox_kernels.score = fail
