"""The colour of a share, in every picture of it."""

LEVELS = 16


def level(share: float) -> int:
    """Which of the colours 0 to ``LEVELS`` a share has; 0 is nothing at all.

    It grows with the square root: most shares are small, and must still be told apart.
    """
    return 0 if share <= 0 else max(1, round(LEVELS * min(1.0, float(share)) ** 0.5))
