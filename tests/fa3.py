"""SGLang's own fa3 backend on a CPU: its class, and its wrappers down to the operators, which are torch here.

The package ``sgl_kernel`` loads CUDA libraries where it is imported. Without them an empty one stands for
it, whose module ``flash_attn`` is the real one.
"""

import importlib.util
import sys
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from types import ModuleType, SimpleNamespace
from unittest import mock

import torch
from sglang.srt.configs.model_config import AttentionArch
from sglang.srt.layers.attention.base_attn_backend import AttentionBackend
from sglang.srt.mem_cache.kv_index_translator import KVIndexTranslator

from fakes import DIM, FP8, HEADS, LAYERS, QUERY_HEADS, Scheduler

# Of ``torch.ops.sgl_kernel.fwd``, in its order.
ARGUMENTS = (
    "q k v k_new v_new qv out cu_seqlens_q cu_seqlens_k cu_seqlens_k_new seqused_q seqused_k max_seqlen_q "
    "max_seqlen_k page_table kv_batch_idx leftpad_k rotary_cos rotary_sin seqlens_rotary q_descale k_descale "
    "v_descale softmax_scale causal window_left window_right attention_chunk softcap rotary_interleaved "
    "scheduler_metadata num_splits pack_gqa sm_margin sinks sparse_mask_fine only_qv"
).split()
NEUTRAL = {"window_left": -1, "window_right": -1, "attention_chunk": 0, "softcap": 0.0}
PLAIN = (
    "k_new v_new qv cu_seqlens_k seqused_q kv_batch_idx leftpad_k rotary_cos rotary_sin seqlens_rotary "
    "q_descale window_left window_right attention_chunk softcap sinks sparse_mask_fine"
).split()


def fwd(*given):
    """Causal attention over a paged cache, one sequence after the other: ``(out, None)``.

    Of fp8 the queries are fp8 as well, and what is read is times the descales ``[B, H]``.
    """
    a = SimpleNamespace(**dict(zip(ARGUMENTS, given, strict=True)))
    quantized = a.k.dtype == FP8
    assert {x.dtype for x in (a.q, a.k, a.v)} == {a.k.dtype} and (a.k_descale is not None) == quantized
    odd = [name for name in PLAIN if getattr(a, name) != NEUTRAL.get(name)]
    assert not odd and a.causal and not a.only_qv, f"not what is stood in for: {odd}"
    check_cache(a.k)
    check_cache(a.v)
    assert {x.dtype for x in (a.page_table, a.cu_seqlens_q, a.seqused_k)} == {torch.int32}
    if a.scheduler_metadata is not None:
        assert torch.equal(a.scheduler_metadata, schedule(a.seqused_k)), "made for another batch"
    bounds, lengths = a.cu_seqlens_q.tolist(), a.seqused_k.tolist()
    assert len(bounds) == len(lengths) + 1 and bounds[-1] == len(a.q)
    out = torch.empty(a.q.shape) if a.out is None else a.out
    for row, length in enumerate(lengths):
        queries = a.q[bounds[row] : bounds[row + 1]].float()
        assert 0 < len(queries) <= a.max_seqlen_q and length <= a.page_table.shape[1]
        slots = a.page_table[row, :length].long()
        keys, values = (x[slots, 0].float() for x in (a.k, a.v))
        if quantized:
            keys, values = keys * a.k_descale[row, :, None], values * a.v_descale[row, :, None]
        keys, values = (x.repeat_interleave(QUERY_HEADS // HEADS, 1) for x in (keys, values))
        weights = torch.einsum("qhd,khd->hqk", queries, keys) * a.softmax_scale
        hidden = torch.ones_like(weights, dtype=torch.bool).triu(length - len(queries) + 1)
        weights = weights.masked_fill(hidden, -torch.inf).softmax(-1)
        out[bounds[row] : bounds[row + 1]] = torch.einsum("hqk,khd->qhd", weights, values)
    return out, None


def check_cache(cache: torch.Tensor) -> None:
    """One layer of the pool as it is, every slot a page: a copy has other strides."""
    slot = LAYERS * HEADS * DIM
    assert cache.shape[1:] == (1, HEADS, DIM) and cache.stride() == (slot, slot, DIM, 1)


def schedule(lengths: torch.Tensor) -> torch.Tensor:
    """Stands for what fa3 plans of a decode batch: as long as that, and as much its own."""
    return torch.nn.functional.pad(lengths, (1, -len(lengths) % 4 + 3 * (-(-len(lengths) // 4) * 4)))


def get_scheduler_metadata(*given):
    return schedule(given[8])


def set_decode_metadata(
    cache_seqlens, cu_seqlens_k, page_table, rows, indices, pages, lengths, delta, page_size, swa=None, **kw
):
    """``normal_decode_set_metadata``, a Triton kernel: only what a row has is written."""
    assert (delta, page_size, swa) == (0, 1, None)
    cache_seqlens.copy_(lengths)
    cu_seqlens_k[1:] = lengths.cumsum(0)
    for row, (index, length) in enumerate(zip(indices.tolist(), lengths.tolist(), strict=True)):
        page_table[row, :length] = rows[index, :length]


@contextmanager
def fa3_on_a_cpu() -> Iterator[None]:
    before = set(sys.modules)
    try:
        import sgl_kernel  # noqa: F401
    except ImportError:
        package = ModuleType("sgl_kernel")
        package.__path__ = list(importlib.util.find_spec("sgl_kernel").submodule_search_locations)
        package.flash_ops = package.merge_state_v2 = None
        sys.modules["sgl_kernel"] = package
    from sglang.kernels.ops.attention import flash_attention_v3
    from sglang.srt.layers.attention import flashattention_backend

    operators = {"fwd": SimpleNamespace(default=fwd), "get_scheduler_metadata": get_scheduler_metadata}
    with ExitStack() as stack:
        for name, function in operators.items():
            stack.enter_context(mock.patch.object(torch.ops.sgl_kernel, name, function, create=True))
        stack.enter_context(mock.patch.object(flash_attention_v3, "_is_fa3_supported", lambda: True))
        stack.enter_context(
            mock.patch.object(flashattention_backend, "normal_decode_set_metadata", set_decode_metadata)
        )
        yield
    for name in {name for name in sys.modules if name.split(".")[0] == "sgl_kernel"} - before:
        del sys.modules[name]


def flash_attention(scheduler: Scheduler) -> AttentionBackend:
    """What SGLang makes for ``--attention-backend fa3`` on Hopper and Ampere."""
    from sglang.srt.layers.attention.flashattention_backend import FlashAttentionBackend

    rows, pool = scheduler.req_to_token_pool, scheduler.pool
    model = SimpleNamespace(
        context_len=rows.req_to_token.shape[1],
        head_dim=DIM,
        attention_arch=AttentionArch.MHA,
        is_encoder_decoder=False,
        is_local_attention_model=False,
        hf_text_config=SimpleNamespace(num_attention_heads=QUERY_HEADS),
        get_num_kv_heads=lambda ranks: HEADS,
    )
    translator = KVIndexTranslator(
        req_to_token=rows.req_to_token,
        token_to_kv_pool_allocator=scheduler.token_to_kv_pool_allocator,
        token_to_kv_pool=pool,
        page_size=1,
        device="cpu",
    )
    return FlashAttentionBackend(
        SimpleNamespace(
            model_config=model,
            req_to_token_pool=rows,
            token_to_kv_pool=pool,
            kv_index_translator=translator,
            kv_cache_dtype=pool.dtype,
            kv_cache_dtype_str="fp8_e4m3" if pool.dtype == FP8 else "auto",
            page_size=1,
            device="cpu",
            sliding_window_size=None,
            is_draft_worker=False,
        )
    )
