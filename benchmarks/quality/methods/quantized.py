"""KV in fewer bits: the honest rival of pruning at the same bytes."""

from dataclasses import replace

import torch

from benchmarks.quality.methods.reader import Prefix

# Numbers that share a scale and an offset.
GROUP = 64
LEVELS = 15
# Shares of the bytes of KV in 16 bits. A group has a scale and an offset of 16 bits each.
FP8, FOUR_BITS = 0.5, (4 + 32 / GROUP) / 16


def fp8(prefix: Prefix) -> Prefix:
    """K and V in fp8 e4m3, one scale for a layer's keys and one for its values."""
    keys, values = ([to_fp8(part) for part in of] for of in (prefix.keys, prefix.values))
    return replace(prefix, keys=keys, values=values)


def four_bits(prefix: Prefix) -> Prefix:
    """K and V in 4 bits, as KIVI has them (arXiv 2402.02750).

    Keys by channel over groups of 64 tokens, values by token over groups of 64 channels. The last tokens,
    which fill no group, keep their keys as they are.
    """
    keys = []
    for key in prefix.keys:
        whole = key.shape[1] // GROUP * GROUP
        grouped = key[:, :whole].unflatten(1, (-1, GROUP)).transpose(2, 3)
        keys.append(torch.cat([to_levels(grouped).transpose(2, 3).flatten(1, 2), key[:, whole:]], dim=1))
    values = [
        to_levels(value.unflatten(2, (-1, min(GROUP, value.shape[2])))).flatten(2) for value in prefix.values
    ]
    return replace(prefix, keys=keys, values=values)


def to_fp8(x: torch.Tensor) -> torch.Tensor:
    scale = x.float().abs().amax() / torch.finfo(torch.float8_e4m3fn).max
    return ((x.float() / scale).to(torch.float8_e4m3fn).float() * scale).to(x.dtype)


def to_levels(x: torch.Tensor) -> torch.Tensor:
    """Rounds the last dimension, one group, to 16 levels from its least to its greatest number."""
    low = x.amin(dim=-1, keepdim=True)
    step = ((x.amax(dim=-1, keepdim=True) - low) / LEVELS).clamp_min(torch.finfo(x.dtype).tiny)
    return ((x - low) / step).round() * step + low
