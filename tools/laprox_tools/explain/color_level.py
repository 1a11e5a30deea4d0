"""How hot a share is drawn, whatever draws it."""

LEVELS = 16


def level(share: float) -> int:
    """Which of the colours 0 to ``LEVELS`` a share has; 0 is nothing at all.

    Shares are mostly small: what is seen is their square root.
    """
    return 0 if share <= 0 else max(1, round(LEVELS * min(1.0, float(share)) ** 0.5))
