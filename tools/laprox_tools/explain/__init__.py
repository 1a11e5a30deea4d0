"""``laprox explain``: what a server kept of a prompt, drawn."""
