"""What is read of SGLang's objects: a Protocol for each of its classes, and nothing that is not used.

SGLang has no types that mypy could see, and it changes every two weeks. So the code is checked against these
Protocols, and at the start of a server the gate (``laprox_patches.version``) checks SGLang's classes against
them, member by member. A class that is subclassed here is listed with the methods that are overridden or
called.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from contextlib import AbstractContextManager
from typing import TYPE_CHECKING, Any, Protocol, TypeVar

import torch

if TYPE_CHECKING:
    from laprox_sglang.options.server import Config

Class = TypeVar("Class", bound=type)
# A node of the tree is named by a handle, and a lock on its path is a receipt: both only travel through here.
Node = object
Lock = object

PORTS: dict[str, type] = {}


def port(path: str) -> Callable[[Class], Class]:
    """Marks a Protocol as what is read of the class at ``path`` of SGLang."""

    def mark(protocol: Class) -> Class:
        PORTS[path] = protocol
        return protocol

    return mark


# A request and its batch.


@port("sglang.srt.sampling.sampling_params.SamplingParams")
class SamplingParams(Protocol):
    custom_params: Mapping[str, object] | None  # where a request's own options lie
    max_new_tokens: int  # with one, nothing would read a view


@port("sglang.srt.managers.schedule_batch.ReqKvInfo")
class Kv(Protocol):
    """What a request holds of the KV pool."""

    req_pool_idx: int  # its row of req_to_token
    cache_protected_len: int  # first columns that the tree owns, so not the request's to free
    kv_allocated_len: int  # logical columns, the tail included

    @property
    def holds_kv(self) -> bool: ...


class FinishReason(Protocol):
    def to_json(self) -> dict[str, str]: ...


@port("sglang.srt.managers.schedule_batch.Req")
class Req(Protocol):
    rid: str
    sampling_params: SamplingParams
    stream: bool
    kv: Kv
    lock: Lock  # on the path to last_node
    last_node: Node
    prefix_len: int  # columns that this forward pass finds computed
    extend_end: int  # column where it ends
    origin_input_ids: Sequence[int]
    output_ids: Sequence[int]
    full_untruncated_fill_ids: Sequence[int]  # prompt and output, whatever the chunk at hand
    extra_key: str | None  # the tree's name space, as is the salt
    cache_salt: str | None
    skip_radix_cache_insert: bool  # the tree may not hold it
    cached_tokens: int
    customized_info: dict[str, list[object]] | None  # what travels with each output token
    finished_output: bool | None  # its last output has been sent
    finished_reason: FinishReason

    @property
    def output_ids_through_stop(self) -> Sequence[int]: ...

    def finished(self) -> bool: ...

    def owned_kv_len(self) -> int: ...


@port("sglang.srt.model_executor.forward_batch_info.ForwardMode")
class ForwardMode(Protocol):
    def is_extend(self) -> bool: ...

    def is_decode(self) -> bool: ...


@port("sglang.srt.managers.schedule_batch.ScheduleBatch")
class Batch(Protocol):
    reqs: list[Req]
    forward_mode: ForwardMode
    batch_is_full: bool  # admission does not look for room again until this is cleared


@port("sglang.srt.model_executor.forward_batch_info.ForwardBatch")
class ForwardBatch(Protocol):
    req_pool_indices: torch.Tensor
    seq_lens: torch.Tensor
    out_cache_loc: torch.Tensor


# Memory.


@port("sglang.srt.mem_cache.allocator.base.BaseTokenToKVPoolAllocator")
class Allocator(Protocol):
    def available_size(self) -> int: ...

    def alloc(self, need_size: int) -> torch.Tensor | None: ...

    def free(self, free_index: torch.Tensor) -> None: ...


@port("sglang.srt.mem_cache.memory_pool.ReqToTokenPool")
class Rows(Protocol):
    req_to_token: torch.Tensor  # int32 [rows, context], slot of each logical column


@port("sglang.srt.mem_cache.base_prefix_cache.MatchResult")
class Match(Protocol):
    last_device_node: Node

    @property
    def device_prefix_len(self) -> int: ...


@port("sglang.srt.mem_cache.radix_cache.RadixKey")
class Key(Protocol):
    token_ids: Sequence[int]
    extra_key: str | None
    is_bigram: bool
    cache_salt: str | None

    def __len__(self) -> int: ...


@port("sglang.srt.mem_cache.base_prefix_cache.MatchPrefixParams")
class MatchParams(Protocol):
    key: Key
    cow_mamba: bool
    req: Req | None


@port("sglang.srt.mem_cache.unified_radix_cache.UnifiedRadixCache")
class Tree(Protocol):
    """The prefix cache, which ``cache.tree.LaproxCache`` is a subclass of."""

    disable: bool
    token_to_kv_pool_allocator: Allocator
    req_to_token_pool: Rows

    def match_prefix(self, params: MatchParams) -> Match: ...

    def checkpoint(self, req: Req, *, up_to: int) -> None: ...

    def touch_prefix(self, key: Key) -> None: ...

    def lock(self, node: Node) -> Lock: ...

    def unlock(self, lock: Lock) -> None: ...

    def root_node_handle(self, extra_key: str | None = None) -> Node: ...

    def evictable_size(self) -> int: ...

    def protected_size(self) -> int: ...

    def total_size(self) -> tuple[int, int]: ...

    def claim_kv_row(self, req: Req) -> bool: ...

    def free_kv_row(self, kv: Kv, ranges: list[tuple[int, int]]) -> None: ...

    def on_release(self, req: Req, *, checkpointed: bool) -> None: ...

    def sanity_check(self) -> None: ...


@port("sglang.srt.mem_cache.memory_pool.MHATokenToKVPool")
class Pool(Protocol):
    """The KV pool, which ``cache.pool.LaproxKVPool`` is a subclass of."""

    size: int
    page_size: int
    layer_num: int
    head_num: int
    head_dim: int
    store_dtype: torch.dtype
    device: str
    k_buffer: list[torch.Tensor]
    v_buffer: list[torch.Tensor]
    data_strides: torch.Tensor
    memory_saver_adapter: MemorySaver
    enable_custom_mem_pool: bool
    custom_mem_pool: torch.cuda.MemPool

    def _create_buffers_normal(self) -> None: ...

    def _init_data_ptrs_and_strides(self) -> None: ...

    def _slot_move_pointer_buffers(self) -> list[torch.Tensor]: ...

    def _move_kv_cache_impl(self, tgt_loc: torch.Tensor, src_loc: torch.Tensor) -> None: ...

    def get_contiguous_buf_infos(self) -> tuple[list[int], list[int], list[int]]: ...

    def set_kv_buffer(self, layer: Layer, loc_info: object, cache_k: torch.Tensor, cache_v: torch.Tensor) -> None: ...


class MemorySaver(Protocol):
    def region(self, tag: str) -> AbstractContextManager[None]: ...


# The model and its attention.


@port("sglang.srt.layers.radix_attention.RadixAttention")
class Layer(Protocol):
    layer_id: int
    tp_q_head_num: int
    tp_k_head_num: int
    qk_head_dim: int
    v_head_dim: int
    scaling: float
    sliding_window_size: int
    logit_cap: float
    is_cross_attention: bool
    attn_type: object
    use_irope: bool
    xai_temperature_len: int


@port("sglang.srt.layers.attention.base_attn_backend.AttentionBackend")
class AttentionBackend(Protocol):
    """An attention backend, in front of which ``attention.backend.LaproxAttention`` is put."""

    def shared_read_ends(self, fm: ForwardMode) -> object: ...

    def _snapshot_prefill_shared_reads(self, forward_batch: ForwardBatch, *, num_qo_tokens: int) -> object: ...

    def init_cuda_graph_state(self, max_bs: int, max_num_tokens: int) -> None: ...

    def init_forward_metadata(self, forward_batch: ForwardBatch) -> None: ...

    def init_forward_metadata_out_graph(self, forward_batch: ForwardBatch, in_capture: bool = False) -> None: ...

    def init_forward_metadata_in_graph(self, forward_batch: ForwardBatch) -> None: ...

    def forward_extend(
        self,
        q: torch.Tensor,
        k: torch.Tensor,
        v: torch.Tensor,
        layer: Layer,
        forward_batch: ForwardBatch,
        save_kv_cache: bool = True,
        **kw: torch.Tensor | None,
    ) -> torch.Tensor: ...

    def forward_decode(
        self,
        q: torch.Tensor,
        k: torch.Tensor,
        v: torch.Tensor,
        layer: Layer,
        forward_batch: ForwardBatch,
        save_kv_cache: bool = True,
        **kw: torch.Tensor | None,
    ) -> torch.Tensor: ...


@port("sglang.srt.configs.model_config.ModelConfig")
class ModelConfig(Protocol):
    model_path: str
    num_hidden_layers: int
    num_attention_heads: int
    head_dim: int
    hidden_size: int
    context_len: int
    dtype: torch.dtype
    is_hybrid_swa: bool
    is_encoder_decoder: bool
    is_multimodal: bool
    is_generation: bool
    attention_arch: object
    attention_chunk_size: int | None
    has_attention_sinks: bool

    def get_num_kv_heads(self, tensor_parallel_size: int) -> int: ...


# The scheduler and its parts.


@port("sglang.srt.model_executor.model_runner.ModelRunner")
class Runner(Protocol):
    model: torch.nn.Module
    dtype: torch.dtype
    model_config: ModelConfig
    server_args: ServerArgs
    token_to_kv_pool: Pool
    req_to_token_pool: Rows
    attn_backend: AttentionBackend
    forward_stream: torch.Stream
    is_draft_worker: bool
    shared_read_done_event: object | None  # whoever waits for less than the whole forward pass waits for this


@port("sglang.srt.managers.tp_worker.TpModelWorker")
class Worker(Protocol):
    model_runner: Runner

    @property
    def last_shared_read_runner(self) -> Runner: ...


class MetricsReporter(Protocol):
    current_scheduler_metrics_enabled: bool


class MetricsCollector(Protocol):
    labels: dict[str, str]


class InternalState(Protocol):
    internal_state: dict[str, object]


@port("sglang.srt.managers.scheduler.Scheduler")
class Scheduler(Protocol):
    server_args: ServerArgs
    tp_worker: Worker
    model_worker: Worker
    tree_cache: Tree
    token_to_kv_pool_allocator: Allocator
    max_total_num_tokens: int
    running_batch: Batch
    waiting_queue: Sequence[Req]
    chunked_req: Req | None
    metrics_reporter: MetricsReporter
    metrics_collector: MetricsCollector


class Requests(Protocol):
    def __iter__(self) -> Iterable[Req]: ...


@port("sglang.srt.managers.scheduler_components.invariant_checker.SchedulerInvariantChecker")
class LeakCheck(Protocol):
    def _requests_owning_rows(self) -> Iterable[Req]: ...


@port("sglang.srt.server_args.ServerArgs")
class ServerArgs(Protocol):
    model_path: str
    served_model_name: str | None
    device: str
    dp_size: int
    radix_cache_backend: str | None
    prefill_max_requests: int | None
