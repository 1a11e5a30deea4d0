"""How ``score`` weighs neighbouring positions."""

from laprox_kernels.gpu.support import Unsupported

POOLINGS = ("average", "triangle")


def weights(kind: str, width: int) -> list[int]:
    """Weights of ``width`` neighbours, the position itself in their middle.

    Args:
        kind: ``average`` weighs all alike, ``triangle`` the less the further away they are.

    Raises:
        Unsupported: an unknown kind, or an even width.
    """
    if kind not in POOLINGS or width % 2 == 0:
        served = f"{' and '.join(POOLINGS)} over odd widths"
        raise Unsupported(f"score: pooling {kind} over {width} (served: {served})")
    reach = width // 2
    return [reach + 1 - abs(at - reach) if kind == "triangle" else 1 for at in range(width)]
