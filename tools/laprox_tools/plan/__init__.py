"""``laprox plan``: how many requests a GPU holds, with LaProx and without, and when it pays."""
