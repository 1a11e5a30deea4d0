"""Hierarchical cache: its host pool, where there is no GPU."""

from sglang.srt.plugins.hook_registry import HookType

from laprox_patches.seam import Seam
from laprox_sglang.cache.host import CpuHostPool
from laprox_sglang.ports import DeviceBuffers


def pool_for(result: type, buffer_info: DeviceBuffers) -> type:
    return CpuHostPool if buffer_info.device.type == "cpu" else result


SEAMS = (
    Seam(
        # Imported there by name, so it is hooked there.
        "sglang.srt.mem_cache.hybrid_cache.hybrid_pool_assembler.get_mha_host_pool_cls",
        pool_for,
        HookType.AFTER,
        ("buffer_info",),
        "type",
    ),
)
