"""Reference CPU platform: the real SGLang server on any x86 machine, with native torch operations.

Plain SGLang does not start without an accelerator unless it was built for CPUs, so this platform
is active exactly there. It is for tests, demos and development, not for speed.
"""

import os
from importlib.metadata import entry_points

import torch

GROUP = "sglang.srt.platforms"
NAME = "laprox_reference_cpu"


def activate() -> str | None:
    """Entry point of the group ``sglang.srt.platforms``: the platform's class, or None to stay out."""
    if os.environ.get("SGLANG_USE_CPU_ENGINE", "0") == "1":
        return None
    if torch.accelerator.is_available() or hasattr(torch, "npu") or hasattr(torch, "hpu"):
        return None
    chosen = os.environ.get("SGLANG_PLATFORM") == NAME
    # SGLang takes one platform: where somebody brought another, ours must be asked for.
    if not chosen and any(point.name != NAME for point in entry_points(group=GROUP)):
        return None
    return "laprox_sglang.reference_cpu.ReferenceCpuPlatform"
