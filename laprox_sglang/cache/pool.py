"""KV pool whose slots are pages of C = L·H cells."""

from contextlib import nullcontext
from typing import TYPE_CHECKING, NoReturn

import torch
from sglang.srt.constants import GPU_MEMORY_TYPE_KV_CACHE
from sglang.srt.mem_cache.memory_pool import move_kv_cache_native

if TYPE_CHECKING:
    from laprox_sglang.ports import Pool as MHATokenToKVPool
else:
    from sglang.srt.mem_cache.memory_pool import MHATokenToKVPool


class LaproxKVPool(MHATokenToKVPool):
    """Stock MHA pool over ONE tensor for K and one for V, ``[slots, L, H, D]``.

    ``k_buffer[l]`` is the strided view ``[:, l]``, so every stock kernel reads and writes as before;
    seen flat, cell (slot, l, h) is row ``(slot·L + l)·H + h``.

    Attributes:
        keys, values: ``[slots, L, H, D]``, contiguous; slot 0 takes the writes of padding. They are numbers,
            of fp8 too; SGLang's own buffers are of bytes then, as torch writes no fp8 by index.
    """

    keys: torch.Tensor
    values: torch.Tensor

    def _create_buffers_normal(self) -> None:
        shape = (self.size + self.page_size, self.layer_num, self.head_num, self.head_dim)
        with (
            self.memory_saver_adapter.region(GPU_MEMORY_TYPE_KV_CACHE),
            torch.cuda.use_mem_pool(self.custom_mem_pool) if self.enable_custom_mem_pool else nullcontext(),
        ):
            keys = torch.zeros(shape, dtype=self.store_dtype, device=self.device)
            values = torch.zeros(shape, dtype=self.store_dtype, device=self.device)
        self.k_buffer, self.v_buffer = list(keys.unbind(1)), list(values.unbind(1))
        self.keys, self.values = keys.view(self.dtype), values.view(self.dtype)

    @property
    def slot_bytes(self) -> int:
        """Of a slot: K and V of a token in all layers and heads."""
        return 2 * self.keys[0].nbytes

    def _init_data_ptrs_and_strides(self) -> None:
        super()._init_data_ptrs_and_strides()
        # Stock computes the stride from one layer's shape. In this pool a slot is followed by its next layer.
        self.data_strides = torch.tensor(
            [x.stride(0) * x.dtype.itemsize for x in self._slot_move_pointer_buffers()], device=self.device
        )

    def _move_kv_cache_impl(self, tgt_loc: torch.Tensor, src_loc: torch.Tensor) -> None:
        move_kv_cache_native(self.k_buffer, self.v_buffer, tgt_loc, src_loc)

    def get_contiguous_buf_infos(self) -> NoReturn:
        raise NotImplementedError("laprox: layers of this KV pool are not contiguous; no KV transfer from it")
