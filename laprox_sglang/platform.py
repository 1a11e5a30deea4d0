"""Reference CPU platform: the real SGLang server on any x86 machine, with native torch operations.

Plain SGLang does not start without an accelerator unless it was built for CPUs, so this platform
is active exactly there. It is for tests, demos and development, not for speed.
"""

import os
from typing import Any

import torch


def activate() -> str | None:
    """Entry point of the group ``sglang.srt.platforms``: the platform's class, or None to stay out."""
    if os.environ.get("SGLANG_USE_CPU_ENGINE", "0") == "1":
        return None
    npu = getattr(torch, "npu", None)
    if torch.cuda.is_available() or torch.xpu.is_available() or (npu is not None and npu.is_available()):
        return None
    return "laprox_sglang.reference_cpu.ReferenceCpuPlatform"


def is_reference_cpu() -> bool:
    from sglang.srt.platforms import current_platform

    platform: Any = current_platform
    return platform.device_name == "reference_cpu"
