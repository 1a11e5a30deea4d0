"""How ``score`` weighs neighbouring positions."""

import torch
import torch.nn.functional as F

from laprox_kernels.gpu.support import Unsupported

POOLINGS = ("average", "parabola")


def weights(kind: str, width: int) -> list[int]:
    """Weights of ``width`` neighbours, the position itself in their middle.

    Args:
        kind: ``average`` weighs all alike, ``parabola`` the less the further away they are: the square of
            the first distance that weighs nothing, less the square of theirs (Epanechnikov's kernel).

    Raises:
        Unsupported: an unknown kind, or an even width.
    """
    if kind not in POOLINGS or width % 2 == 0:
        served = f"{' and '.join(POOLINGS)} over odd widths"
        raise Unsupported(f"score: pooling {kind} over {width} (served: {served})")
    reach = width // 2
    return [(reach + 1) ** 2 - (at - reach) ** 2 if kind == "parabola" else 1 for at in range(width)]


def pool(scores: torch.Tensor, kind: str, width: int) -> torch.Tensor:
    """Pools ``[H, C]`` over its C positions, beyond which there is nothing: it counts as 0.

    Raises:
        Unsupported: as of ``weights``.
    """
    weighed = weights(kind, width)
    padded = F.pad(scores, (width // 2, width // 2))
    pooled = torch.zeros_like(scores)
    # One neighbour after another: a convolution would round to TF32 on a GPU.
    for at, weight in enumerate(weighed):
        pooled.add_(padded[:, at : at + scores.shape[1]], alpha=weight)
    return pooled / sum(weighed)
