"""Which SGLang LaProx serves: by version, and by what the code reads of it.

Functions that are hooked are compared one by one (``seam``). Attributes are not functions: all seams
of SGLang 0.5.17 verified on 0.5.20, where a request keeps its KV state elsewhere.
"""

import dataclasses
import dis
import inspect
import pkgutil
from collections.abc import Mapping
from types import FunctionType
from typing import Any

from sglang.version import __version__ as installed

from laprox_patches.seam import SeamError

SERVED = "0.5.23"

# Attributes of SGLang's classes that laprox_sglang and the hooks read or override.
RELIED_ON: Mapping[str, str] = {
    "sglang.srt.managers.schedule_batch.ReqKvInfo": (
        "req_pool_idx cache_protected_len kv_committed_len kv_allocated_len holds_kv"
    ),
    "sglang.srt.managers.schedule_batch.Req": (
        "kv lock last_node prefix_len extend_end extend_len full_untruncated_fill_ids origin_input_ids "
        "cached_tokens output_ids sampling_params extra_key cache_salt "
        "skip_radix_cache_insert finished finished_reason owned_kv_len"
    ),
    "sglang.srt.mem_cache.unified_radix_cache.UnifiedRadixCache": (
        "checkpoint claim_kv_row free_kv_row on_release lock unlock match_prefix touch_prefix evictable_size "
        "protected_size supports_prefix_sharing root_node_handle sanity_check disable"
    ),
    "sglang.srt.mem_cache.base_prefix_cache.TreeLock": "node receipt",
    "sglang.srt.managers.scheduler.Scheduler": (
        "forward_stream forward_stream_ctx schedule_stream enable_overlap batch_record_buf batch_record_ct "
        "running_batch waiting_queue chunked_req tree_cache token_to_kv_pool_allocator tp_worker server_args "
        "max_total_num_tokens metrics_reporter metrics_collector"
    ),
    "sglang.srt.managers.tp_worker.TpModelWorker": "last_shared_read_runner model_runner",
    "sglang.srt.model_executor.model_runner.ModelRunner": "shared_read_done_event",
    "sglang.srt.managers.scheduler_components.output_streamer.SchedulerOutputStreamer": (
        "has_additional_customized_info tree_cache"
    ),
    "sglang.srt.managers.tokenizer_manager.TokenizerManager": (
        "allow_auto_truncate context_len preferred_sampling_params server_args enable_metrics "
        "metrics_collector"
    ),
    "sglang.srt.entrypoints.openai.serving_chat.OpenAIServingChat": "tokenizer_manager",
    "sglang.srt.managers.tokenizer_manager.ReqState": "obj",
    "sglang.srt.layers.attention.base_attn_backend.AttentionBackend": (
        "init_cuda_graph_state init_forward_metadata init_forward_metadata_out_graph "
        "init_forward_metadata_in_graph forward_extend forward_decode"
    ),
    "sglang.srt.layers.radix_attention.RadixAttention": (
        "layer_id tp_q_head_num tp_k_head_num qk_head_dim v_head_dim scaling sliding_window_size logit_cap "
        "is_cross_attention attn_type use_irope xai_temperature_len"
    ),
    "sglang.srt.managers.scheduler_components.weight_updater.SchedulerWeightUpdaterManager": (
        "_session offload_tags tp_worker"
    ),
    "sglang.srt.model_executor.model_runner.ModelRunner": "is_draft_worker attn_backend model",
    "sglang.srt.mem_cache.kv_cache_configurator.KVCacheConfigurator": (
        "is_draft_worker kv_cache_dtype model_config server_args resolve_max_num_reqs"
    ),
    "sglang.srt.configs.model_config.ModelConfig": (
        "attention_arch is_hybrid_swa is_encoder_decoder is_multimodal attention_chunk_size "
        "has_attention_sinks is_generation model_path"
    ),
    "sglang.srt.managers.scheduler_components.invariant_checker.SchedulerInvariantChecker": (
        "_requests_owning_rows"
    ),
    "sglang.srt.mem_cache.memory_pool.MHATokenToKVPool": (
        "_create_buffers_normal _init_data_ptrs_and_strides _move_kv_cache_impl get_contiguous_buf_infos "
        "_slot_move_pointer_buffers set_kv_buffer size page_size layer_num head_num head_dim store_dtype "
        "device memory_saver_adapter enable_custom_mem_pool custom_mem_pool"
    ),
}


def check_version(version: str = installed) -> None:
    """
    Raises:
        SeamError: this is not the SGLang that LaProx serves; the message says which one is.
    """
    if version != SERVED:
        raise SeamError(
            f"SGLang {version} is not served, only {SERVED}: pip install sglang=={SERVED}, or an older "
            "laprox-sglang"
        )


def check_attributes(relied_on: Mapping[str, str] = RELIED_ON) -> None:
    """
    Raises:
        SeamError: a class or an attribute that the code reads is gone; the message names it.
    """
    for path, names in relied_on.items():
        try:
            found = attributes(pkgutil.resolve_name(path))
        except (ImportError, AttributeError) as error:
            raise SeamError(f"{path} is missing from this SGLang ({error})") from None
        missing = [name for name in names.split() if name not in found]
        if missing:
            raise SeamError(f"{path} has changed: no {', '.join(missing)}")


def attributes(cls: type) -> set[str]:
    """Names that instances of ``cls`` have: those of the class, and those that its methods assign."""
    found = set(dir(cls))
    if dataclasses.is_dataclass(cls):
        found |= {field.name for field in dataclasses.fields(cls)}
    for base in cls.__mro__:
        found |= set(vars(base).get("__annotations__", ()))
        for member in vars(base).values():
            found |= assigned(getattr(member, "__func__", member))
    return found


def assigned(member: Any) -> set[str]:
    if not isinstance(member, FunctionType):
        return set()
    # Hooks may be in place already: arguments are resolved more than once in a process.
    member = inspect.unwrap(member)
    return {step.argval for step in dis.get_instructions(member) if step.opname == "STORE_ATTR"}
