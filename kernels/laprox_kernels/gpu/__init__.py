"""Triton versions, for NVIDIA GPUs. Each module stands beside the one of the same name in ``reference``."""
