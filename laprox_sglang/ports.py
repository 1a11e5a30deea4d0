"""What is read of SGLang's objects: a Protocol for each of its classes, and nothing that is not used.

SGLang has no types that mypy could see, and it changes every two weeks. So the code is checked against these
Protocols, and at the start of a server the gate (``laprox_patches.version``) checks SGLang's classes against
them, member by member. A class that is subclassed here is listed with the methods that are overridden or
called. (``Message``, ``Tokenizer`` and ``Description`` stand for many classes, so they are not looked for.)
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from contextlib import AbstractContextManager
from typing import Any, Protocol, Self, TypeVar

import torch

Class = TypeVar("Class", bound=type)
# A node of the tree is named by a handle, and a lock on its path is a receipt: both only travel through here.
Node = object
Lock = object

# What a client sent: its types are found out where it is read.
Json = dict[str, Any]

PORTS: dict[type, str] = {}


def port(path: str) -> Callable[[Class], Class]:
    """Marks a Protocol as what is read of the class at ``path`` of SGLang."""

    def mark(protocol: Class) -> Class:
        PORTS[protocol] = path
        return protocol

    return mark


# A request and its batch.


@port("sglang.srt.managers.io_struct.TokenizedGenerateReqInput")
class TokenizedRequest(Protocol):
    """A request as it reaches the scheduler, whoever has looked at it before."""

    rid: str
    input_text: str | None
    input_ids: Sequence[int] | None
    sampling_params: SamplingParams
    session_params: object | None
    stream: bool
    http_worker_ipc: str | None
    time_stats: object


@port("sglang.srt.sampling.sampling_params.SamplingParams")
class SamplingParams(Protocol):
    """A request's own options, and whether there is anything to decode."""

    custom_params: Json | None  # where a request's own options lie
    max_new_tokens: int  # with one, nothing would read a view
    beam_width: int | None


@port("sglang.srt.managers.schedule_batch.ReqKvInfo")
class Kv(Protocol):
    """What a request holds of the KV pool."""

    req_pool_idx: int  # its row of req_to_token
    cache_protected_len: int  # first columns that the tree owns, so not the request's to free
    kv_allocated_len: int  # logical columns, the tail included


@port("sglang.srt.managers.schedule_batch.BaseFinishReason")
class FinishReason(Protocol):
    """Tells an abort from an end, for events and totals."""

    def to_json(self) -> dict[str, str]: ...


@port("sglang.srt.managers.schedule_batch.Req")
class Req(Protocol):
    """A request in the scheduler: its prompt, the columns at hand, its lock in the tree."""

    rid: str
    sampling_params: SamplingParams
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
    cached_tokens_host: int
    cached_tokens_storage: int
    finished_reason: FinishReason
    session_id: str | None  # of what --enable-session-radix-cache keeps longest

    def finished(self) -> bool: ...

    def owned_kv_len(self) -> int: ...


@port("sglang.srt.model_executor.forward_batch_info.ForwardMode")
class ForwardMode(Protocol):
    """Prefills make views, decode steps read them."""

    def is_extend(self) -> bool: ...

    def is_decode(self) -> bool: ...


@port("sglang.srt.managers.schedule_batch.ScheduleBatch")
class Batch(Protocol):
    """What a forward pass computes, and whether others may be let in."""

    reqs: list[Req]
    forward_mode: ForwardMode
    batch_is_full: bool  # admission does not look for room again until this is cleared


@port("sglang.srt.model_executor.forward_batch_info.ForwardBatch")
class ForwardBatch(Protocol):
    """The same on the device: rows, logical lengths, where new KV goes."""

    req_pool_indices: torch.Tensor
    seq_lens: torch.Tensor
    out_cache_loc: torch.Tensor


# Memory.


@port("sglang.srt.mem_cache.allocator.base.BaseTokenToKVPoolAllocator")
class Allocator(Protocol):
    """A view's slots are taken from it, and given back."""

    size: int

    def available_size(self) -> int: ...

    def alloc(self, need_size: int) -> torch.Tensor | None: ...

    def free(self, free_index: torch.Tensor) -> None: ...


@port("sglang.srt.mem_cache.memory_pool.ReqToTokenPool")
class Rows(Protocol):
    """A view is named in its request's row."""

    req_to_token: torch.Tensor  # int32 [rows, context], slot of each logical column


@port("sglang.srt.mem_cache.base_prefix_cache.MatchResult")
class Match(Protocol):
    """Where a view begins in the tree, and that it does."""

    last_device_node: Node

    @property
    def device_prefix_len(self) -> int: ...


@port("sglang.srt.mem_cache.radix_cache.RadixKey")
class Key(Protocol):
    """A prompt as the tree knows it; cut off where its window must be computed."""

    token_ids: Sequence[int]
    extra_key: str | None
    is_bigram: bool
    cache_salt: str | None

    def __len__(self) -> int: ...


@port("sglang.srt.mem_cache.base_prefix_cache.MatchPrefixParams")
class MatchParams(Protocol):
    """What the tree is asked with; the request says whether it will be pruned."""

    key: Key
    cow_mamba: bool
    req: Req | None


@port("sglang.srt.mem_cache.base_prefix_cache.EvictParams")
class Evict(Protocol):
    """How much an allocation lacks."""

    num_tokens: int


@port("sglang.srt.mem_cache.unified_cache.cache_action.BackupKV")
class Backup(Protocol):
    """What is to be written to host memory."""

    node_ids: list[Node]  # from the root down, each the parent of the next


@port("sglang.srt.mem_cache.unified_cache.unified_tree_core_interface.TreePathNodeInfo")
class PathNode(Protocol):
    """What a prompt in the tree is made of."""

    node_id: Node


@port("sglang.srt.mem_cache.base_prefix_cache.IncLockRefResult")
class HostLock(Protocol):
    """Copies in host memory that are not to be given up."""

    def to_dec_params(self) -> object: ...


@port("sglang.srt.mem_cache.unified_cache.unified_tree_core.UnifiedTreeCore")
class TreeCore(Protocol):
    """The tree itself, in Python or Rust."""

    def build_backup_kv_action(self, node_id: Node) -> Backup: ...

    def collect_path_info(self, end_node_ids: Sequence[Node]) -> Sequence[Sequence[PathNode]]: ...

    def match_full_device_prefix(self, key: Key) -> tuple[int, Node, int]: ...


@port("sglang.srt.managers.cache_controller.HiCacheController")
class HostController(Protocol):
    """Copies to host memory and back."""

    write_policy: str
    ack_load_queue: Sequence[object]  # loads that have begun


@port("sglang.srt.mem_cache.pool_host.group.HostPoolGroup")
class HostPools(Protocol):
    """How much of a host tier is in use."""

    @property
    def size(self) -> int: ...

    def available_size(self) -> int: ...


@port("sglang.srt.mem_cache.unified_cache.session_ref_tracker.UnifiedSessionRefTracker")
class SessionRefs(Protocol):
    """Which open sessions the tree's KV is of."""

    def register_session_ref(self, req: Req, leaf: Node) -> None: ...


@port("sglang.srt.mem_cache.unified_radix_cache.UnifiedRadixCache")
class Tree(Protocol):
    """The prefix cache, which ``cache.tree.LaproxCache`` is a subclass of."""

    disable: bool
    enable_session_radix_cache: bool
    session_refs: SessionRefs
    tree_core: TreeCore
    host_pool_group: HostPools | None  # of a host tier
    cache_controller: HostController
    is_write_back: bool
    ongoing_write_through: Mapping[int, object]  # writes to host memory that are under way
    ongoing_load_back: Mapping[int, object]  # and loads from there
    token_to_kv_pool_allocator: Allocator
    req_to_token_pool: Rows

    def match_prefix(self, params: MatchParams) -> Match: ...

    def checkpoint(self, req: Req, *, up_to: int) -> None: ...

    def touch_prefix(self, key: Key) -> None: ...

    def lock(self, node: Node) -> Lock: ...

    def unlock(self, lock: Lock) -> None: ...

    def inc_host_lock_ref(self, node_id: Node) -> HostLock: ...  # of one node, not of its path

    def dec_host_lock_ref(self, node_id: Node, params: object) -> object: ...

    def root_node_handle(self, extra_key: str | None = None) -> Node: ...

    def evictable_size(self) -> int: ...

    def protected_size(self) -> int: ...

    def total_size(self) -> tuple[int, int]: ...

    def claim_kv_row(self, req: Req) -> bool: ...

    def free_kv_row(self, kv: Kv, ranges: list[tuple[int, int]]) -> None: ...

    def on_release(self, req: Req, *, checkpointed: bool) -> None: ...

    def sanity_check(self) -> None: ...

    def attach_storage_backend(self, storage_backend: str, **given: str | None) -> tuple[bool, str]: ...

    def writing_check(self, write_back: bool = False) -> None: ...  # with it, waits for all

    def loading_check(self, finish_count: int | None = None) -> None: ...  # with it, waits for so many

    def evict_for_alloc(self, params: Evict, **given: Callable[[], bool] | None) -> object: ...

    def _execute_and_commit_kv_backup(self, action: Backup, write_back: bool = False) -> int: ...

    def _finish_write_through_ack(self, ack_id: int) -> None: ...

    def init_hicache(self, server_args: object, params: object) -> None: ...

    def check_hicache_events(self) -> None: ...

    def ensure_session_generation(self, session_id: str) -> int: ...  # it is opened if it was not

    def release_radix_session(self, session_id: str) -> int: ...

    def reset(self) -> None: ...


@port("sglang.srt.mem_cache.memory_pool.MHATokenToKVPool")
class Pool(Protocol):
    """The KV pool, which ``cache.pool.LaproxKVPool`` is a subclass of."""

    size: int
    page_size: int
    layer_num: int
    head_num: int
    head_dim: int
    dtype: torch.dtype
    store_dtype: torch.dtype  # bytes where the numbers are fp8
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

    def set_kv_buffer(
        self,
        layer: Layer,
        loc_info: object,
        cache_k: torch.Tensor,
        cache_v: torch.Tensor,
        k_scale: torch.Tensor | None = None,
        v_scale: torch.Tensor | None = None,
    ) -> None: ...


@port("sglang.srt.mem_cache.device_pool_info.MHABufferInfo")
class DeviceBuffers(Protocol):
    """Whose KV a host pool is to hold."""

    device: torch.device


class Pages(Protocol):
    """What a host pool copies of, or into: ``cache.pool.LaproxKVPool``."""

    keys: torch.Tensor
    values: torch.Tensor


@port("sglang.srt.mem_cache.pool_host.mha.MHATokenToKVPoolHost")
class HostPool(Protocol):
    """KV in host memory, which ``cache.host.CpuHostPool`` is a subclass of."""

    size: int
    dtype: torch.dtype  # in which numbers are kept: bytes, of fp8
    layout: str
    pin_memory: bool
    fd: int | None
    kv_buffer: torch.Tensor  # K, then V

    def init_kv_buffer(self) -> torch.Tensor: ...

    def _allocate_host_buffer(self) -> None: ...

    def backup_from_device_all_layer(
        self,
        device_pool: Pages,
        host_indices: torch.Tensor,
        device_indices: torch.Tensor,
        io_backend: str,
    ) -> None: ...

    def load_to_device_per_layer(
        self,
        device_pool: Pages,
        host_indices: torch.Tensor,
        device_indices: torch.Tensor,
        layer_id: int,
        io_backend: str,
        *,
        is_draft: bool = False,
    ) -> None: ...


@port("sglang.srt.utils.torch_memory_saver_adapter.TorchMemorySaverAdapter")
class MemorySaver(Protocol):
    """The pool's memory can be released and resumed."""

    def region(self, tag: str) -> AbstractContextManager[None]: ...


# The model and its attention.


@port("sglang.srt.layers.radix_attention.RadixAttention")
class Layer(Protocol):
    """What attention a layer has: LaProx scores one kind, and refuses the others by name."""

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
    # Of a checkpoint with fp8 KV: on the device, what is written is divided by; on the host, what is read is
    # times.
    k_scale: torch.Tensor | None
    v_scale: torch.Tensor | None
    k_scale_float: float | None
    v_scale_float: float | None


@port("sglang.srt.layers.attention.base_attn_backend.AttentionBackend")
class AttentionBackend(Protocol):
    """An attention backend, in front of which ``attention.backend.LaproxAttention`` is put."""

    def init_cuda_graph_state(self, max_bs: int, max_num_tokens: int) -> None: ...

    def init_forward_metadata(self, forward_batch: ForwardBatch) -> None: ...

    def init_forward_metadata_out_graph(
        self, forward_batch: ForwardBatch, in_capture: bool = False
    ) -> None: ...

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
class ModelShape(Protocol):
    """What memory depends on."""

    @property
    def num_hidden_layers(self) -> int: ...

    @property
    def num_attention_heads(self) -> int: ...

    @property
    def head_dim(self) -> int: ...

    @property
    def hidden_size(self) -> int: ...

    @property
    def context_len(self) -> int: ...

    def get_num_kv_heads(self, tensor_parallel_size: int) -> int: ...  # of a rank


class Description(Protocol):
    """A model's ``config.json``."""

    architectures: list[str]


@port("sglang.srt.configs.model_config.ModelConfig")
class ModelConfig(ModelShape, Protocol):
    """What a model is refused for before its weights are loaded."""

    model_path: str
    is_hybrid_swa: bool
    is_encoder_decoder: bool
    is_multimodal: bool
    is_generation: bool
    model_impl: str
    hf_config: Description
    attention_arch: object
    attention_chunk_size: int | None
    has_attention_sinks: bool
    dtype: torch.dtype
    vocab_size: int


# The processes of a server.


@port("sglang.srt.distributed.parallel_state.GroupCoordinator")
class Group(Protocol):
    """Adds up what ranks share; what they tell each other on the host, tests compare."""

    cpu_group: torch.distributed.ProcessGroup
    world_size: int

    # The sum is what it returns; on some devices it overwrites what it is given, on others it does not.
    def all_reduce(self, input_: torch.Tensor) -> torch.Tensor: ...


@port("sglang.srt.runtime_context.ParallelContext")
class Parallel(Protocol):
    """Which process of how many this is."""

    dp_rank: int | None
    attn_tp_size: int  # ranks that share the heads of a layer
    attn_tp_rank: int
    attn_tp_group: Group


# A server's arguments, resolved.


@port("sglang.srt.model_executor.cuda_graph_config.PhaseConfig")
class GraphPhase(Protocol):
    """How large decode graphs are, and of what kind."""

    backend: str
    bs: list[int] | None


@port("sglang.srt.model_executor.cuda_graph_config.CudaGraphConfig")
class GraphConfig(Protocol):
    """Graphs of prefills and of decode steps."""

    decode: GraphPhase
    prefill: GraphPhase


@port("sglang.srt.server_args.ServerArgs")
class ServerArgs(Protocol):
    """The record holds what was typed; ``arg_groups.overrides.resolved_view`` of it says what holds."""

    model_path: str
    served_model_name: str
    device: str
    attention_backend: str | None
    dp_size: int
    radix_cache_backend: str | None
    disable_overlap_schedule: bool
    prefill_max_requests: int | None
    max_prefill_tokens: int | None
    chunked_prefill_size: int | None
    max_running_requests: int | None
    max_total_tokens: int | None
    tp_size: int
    disable_radix_cache: bool
    cuda_graph_config: GraphConfig
    preferred_sampling_params: Json | None
    hicache_storage_backend: str | None
    smg_grpc_mode: bool
    tokenizer_worker_num: int


# The scheduler and its parts.


@port("sglang.srt.model_executor.model_runner.ModelRunner")
class Runner(Protocol):
    """A model runner: the runtime lies on its attention backend."""

    model: torch.nn.Module
    dtype: torch.dtype
    device: str
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
    """Way from the scheduler to the runner."""

    model_runner: Runner

    @property
    def last_shared_read_runner(self) -> Runner: ...


@port("sglang.srt.managers.scheduler_components.metrics_reporter.SchedulerMetricsReporter")
class MetricsReporter(Protocol):
    """Whether there are metrics."""

    current_scheduler_metrics_enabled: bool


@port("sglang.srt.observability.metrics_collector.SchedulerMetricsCollector")
class MetricsCollector(Protocol):
    """Labels that ours carry as well."""

    labels: dict[str, str]


@port("sglang.srt.managers.io_struct.GetInternalStateReqOutput")
class InternalState(Protocol):
    """What ``/server_info`` says; totals are added to it."""

    internal_state: dict[str, object]


@port("sglang.srt.managers.scheduler.Scheduler")
class Scheduler(Protocol):
    """The owner of it all: each of its forward passes is bracketed."""

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
    model_config: ModelConfig
    output_streamer: OutputStreamer

    def _create_generation_req(self, recv_req: TokenizedRequest, *args: object, **kwargs: object) -> Req: ...


@port("sglang.srt.managers.scheduler_components.invariant_checker.SchedulerInvariantChecker")
class LeakCheck(Protocol):
    """Whose rows it counts; all ranks must hold the same."""

    token_to_kv_pool_allocator: Allocator
    tree_cache: Tree
    req_to_token_pool: Rows

    def _requests_owning_rows(self) -> Iterable[Req]: ...


@port("sglang.srt.managers.scheduler_components.output_streamer.SchedulerOutputStreamer")
class OutputStreamer(Protocol):
    """Takes a request's facts along with its output."""

    has_additional_customized_info: bool
    tree_cache: Tree

    def stream_output(self, reqs: list[Req], return_logprob: bool) -> None: ...


@port("sglang.srt.managers.scheduler_components.weight_updater.SchedulerWeightUpdaterManager")
class WeightUpdater(Protocol):
    """Whether the weights at hand are those that are served."""

    scheduler: Scheduler | None
    _session: object | None  # weights are half loaded until it ends
    offload_tags: set[str]  # what lies in no memory just now
    tp_worker: Worker


@port("sglang.srt.mem_cache.kv_cache_configurator.KVCacheConfigurator")
class PoolConfigurator(Protocol):
    """Sizes the KV pool, beside which LaProx needs room, and makes it."""

    is_draft_worker: bool
    kv_cache_dtype: torch.dtype
    model_config: ModelConfig
    server_args: ServerArgs


@port("sglang.srt.model_executor.runner.decode_cuda_graph_runner.DecodeCudaGraphRunner")
class GraphRunner(Protocol):
    """Captures decode graphs, and picks one for a batch."""

    attn_backend: AttentionBackend
    attention_graph_variants: object | None  # an ``AttentionGraphVariants``: which graphs there are


# The tokenizer manager, and requests before they are scheduled.


@port("sglang.srt.managers.io_struct.GenerateReqInput")
class GenerateRequest(Protocol):
    """A request in the tokenizer manager: its options are checked there."""

    text: str | None
    input_ids: Sequence[int] | None
    video_data: object | None
    audio_data: object | None
    sampling_params: Json | list[Json] | None  # of a batch, one for each prompt if they differ
    session_params: object | None


@port("sglang.srt.managers.tokenizer_manager.ReqState")
class RequestInFlight(Protocol):
    """Whose reply is being made."""

    obj: GenerateRequest


@port("sglang.srt.managers.tokenizer_manager.TokenizerManager")
class TokenizerManager(Protocol):
    """Checks requests, and makes replies."""

    server_args: ServerArgs
    tokenizer: Tokenizer
    context_len: int
    allow_auto_truncate: bool
    preferred_sampling_params: Json | None
    enable_metrics: bool
    metrics_collector: MetricsCollector


class Tokenizer(Protocol):
    """Makes tokens of what a template rendered."""

    def encode(self, text: str) -> list[int]: ...


class Message(Protocol):
    """Instructions are told by their role."""

    role: str


class OpenAIRequest(Protocol):
    """Where a body of OpenAI's API has options."""

    custom_params: Json | None


@port("sglang.srt.entrypoints.openai.protocol.CompletionRequest")
class CompletionRequest(OpenAIRequest, Protocol):
    """Its body has a place for options."""


@port("sglang.srt.entrypoints.openai.serving_base.OpenAIServingBase")
class OpenAIHandler(Protocol):
    """Whoever makes requests of such bodies."""

    tokenizer_manager: TokenizerManager


@port("sglang.srt.entrypoints.openai.protocol.ChatCompletionRequest")
class ChatRequest(OpenAIRequest, Protocol):
    """All that a chat template sees."""

    messages: list[Message]
    tools: list[object] | None
    input_ids: list[int] | None
    _format_add_generation_prompt: bool | None  # these two are of requests that only tokenize
    _format_add_special_tokens: bool

    def model_copy(self, *, update: Mapping[str, object]) -> Self: ...

    def model_dump(self, *, include: set[str]) -> dict[str, object]: ...


@port("sglang.srt.entrypoints.openai.serving_chat.OpenAIServingChat")
class ChatHandler(Protocol):
    """Renders chats."""

    tokenizer_manager: TokenizerManager


@port("sglang.srt.entrypoints.openai.protocol.MessageProcessingResult")
class RenderedChat(Protocol):
    """What a chat came to: ids, or text, or both for models that take images."""

    prompt: str
    prompt_ids: list[int] | str
