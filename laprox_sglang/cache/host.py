"""Host pool of the hierarchical cache where there is no GPU: exact KV of histories, in ordinary memory."""

from typing import TYPE_CHECKING

import torch

from laprox_sglang.ports import Pages

if TYPE_CHECKING:
    from laprox_sglang.ports import HostPool as MHATokenToKVPoolHost
else:
    from sglang.srt.mem_cache.pool_host.mha import MHATokenToKVPoolHost


class CpuHostPool(MHATokenToKVPoolHost):
    """Stock's host pool without what needs a GPU: memory is not pinned, and slots are copied whole, as bytes.

    On a GPU stock's own pool serves: its kernels step over the rows of a layer by their stride.
    """

    pin_memory: bool

    def _allocate_host_buffer(self) -> None:
        # Stock keeps 10 GiB of the machine free, which it may not have: tests ask for a few MB.
        self.pin_memory = False
        self.kv_buffer = self.init_kv_buffer()
        self.fd = None

    def backup_from_device_all_layer(
        self,
        device_pool: Pages,
        host_indices: torch.Tensor,
        device_indices: torch.Tensor,
        io_backend: str,
    ) -> None:
        keys, values = self._slots()
        keys[host_indices] = device_pool.keys.view(self.dtype)[device_indices]
        values[host_indices] = device_pool.values.view(self.dtype)[device_indices]

    def load_to_device_per_layer(
        self,
        device_pool: Pages,
        host_indices: torch.Tensor,
        device_indices: torch.Tensor,
        layer_id: int,
        io_backend: str,
        *,
        is_draft: bool = False,
    ) -> None:
        if layer_id > 0:
            # All layers came with the first.
            return
        keys, values = self._slots()
        device_pool.keys.view(self.dtype)[device_indices] = keys[host_indices]
        device_pool.values.view(self.dtype)[device_indices] = values[host_indices]

    def _slots(self) -> tuple[torch.Tensor, torch.Tensor]:
        """K and V, ``[slots, L, H, D]`` in either layout."""
        keys, values = self.kv_buffer
        return (
            (keys, values) if self.layout == "page_first" else (keys.transpose(0, 1), values.transpose(0, 1))
        )
