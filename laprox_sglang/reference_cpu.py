"""The platform class behind ``laprox_sglang.platform``."""

from typing import Protocol

import torch
from sglang.srt.platforms.cpu import CpuDeviceMixin
from sglang.srt.platforms.device_mixin import PlatformEnum
from sglang.srt.platforms.interface import SRTPlatform


class Defaults(Protocol):
    """What the platform sets of SGLang's ``ServerArgs``."""

    device: str | None
    sampling_backend: str | None


class ReferenceCpuPlatform(CpuDeviceMixin, SRTPlatform):  # type: ignore[misc]  # SGLang has no types
    """A CPU as an out-of-tree platform: SGLang then asks for nothing that is compiled for CPUs."""

    _enum = PlatformEnum.OOT
    device_name = "reference_cpu"
    device_type = "cpu"

    def apply_server_args_defaults(self, server_args: Defaults) -> None:
        server_args.device = server_args.device or "cpu"
        server_args.sampling_backend = server_args.sampling_backend or "pytorch"

    def get_default_attention_backend(self) -> str:
        return "torch_native"

    def get_torch_profiler_activity_str(self) -> str:
        return "CPU"

    def get_torch_profiler_activity(self) -> torch.profiler.ProfilerActivity:
        return torch.profiler.ProfilerActivity.CPU
