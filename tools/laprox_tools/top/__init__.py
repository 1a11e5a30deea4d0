"""``laprox top``: what running servers hold and do."""
