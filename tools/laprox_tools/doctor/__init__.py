"""``laprox doctor``: what is wrong with this machine, this installation, or the flags of a server."""
