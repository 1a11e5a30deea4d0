"""A scheduler small enough to check after every step.

Everything that owns or schedules memory is real: SGLang's ``Scheduler`` with its requests, batches,
admission, retraction, aborts and processing of results, its leak check, pools, allocator and tree over
either core; LaProx's pool, cache, runtime, attention mixin and hooks. What is made up: the start of
the scheduler, its endless loop, what only observes it, and the model, which is replaced by values that
tell which token, behind which prefix, they belong to.
"""

import random
from array import array
from collections import deque
from contextlib import contextmanager
from dataclasses import replace
from functools import lru_cache
from types import SimpleNamespace
from unittest import mock

import torch
from sglang.srt.disaggregation.utils import DisaggregationMode
from sglang.srt.environ import envs
from sglang.srt.layers.attention.base_attn_backend import AttentionBackend
from sglang.srt.layers.radix_attention import RadixAttention
from sglang.srt.managers import scheduler as stock
from sglang.srt.managers.io_struct import AbortReq, PauseGenerationReqInput
from sglang.srt.managers.schedule_batch import Req, ScheduleBatch
from sglang.srt.managers.schedule_policy import SchedulePolicy
from sglang.srt.managers.scheduler_components.batch_result_processor import SchedulerBatchResultProcessor
from sglang.srt.managers.scheduler_components.invariant_checker import SchedulerInvariantChecker
from sglang.srt.managers.scheduler_components.new_token_ratio_tracker import NewTokenRatioTracker
from sglang.srt.managers.scheduler_components.pool_stats_observer import SchedulerPoolStatsObserver
from sglang.srt.managers.utils import GenerationBatchResult
from sglang.srt.mem_cache.allocator import TokenToKVPoolAllocator
from sglang.srt.mem_cache.cache_init_params import CacheInitParams
from sglang.srt.mem_cache.hybrid_cache import hybrid_pool_assembler as assembler
from sglang.srt.mem_cache.memory_pool import KVWriteLoc, ReqToTokenPool
from sglang.srt.model_executor.forward_batch_info import ForwardBatch
from sglang.srt.runtime_context import get_context, get_memory, get_schedule
from sglang.srt.sampling.sampling_params import SamplingParams
from sglang.srt.speculative.spec_info import SpeculativeAlgorithm

import laprox_patches.scheduler.step as hooks
from host_tier import LateTransfers
from laprox_patches.model.host_pool import pool_for
from laprox_patches.model.prefix_cache import make_cache
from laprox_patches.scheduler.leak_check import without_spared
from laprox_sglang.attention.backend import with_laprox
from laprox_sglang.cache.pool import LaproxKVPool
from laprox_sglang.options import values
from laprox_sglang.options.server import Config
from laprox_sglang.ranks import ONE_RANK
from laprox_sglang.runtime import Runtime
from laprox_sglang.served_model import scored_layers
from laprox_sglang.streams import ForwardStream
from laprox_sglang.views.state import view_of

# On tensors this small threads only wait for each other.
torch.set_num_threads(1)

LAYERS, HEADS, QUERY_HEADS, DIM = 2, 2, 4, 4
CELLS = LAYERS * HEADS
VOCABULARY = 4
FP8 = torch.float8_e4m3fn
# As a checkpoint has them: what is written is divided by them, which e4m3 does not round.
K_SCALE, V_SCALE = 0.5, 0.25
CONFIG = Config(budget=0.4, window=3, pooling_kernel=3, min_tokens=8, sink_tokens=2)
# The cores that SGLang has for its tree, and no tree: ``--disable-radix-cache``.
TREES = ("rust", "python", "off")


@contextmanager
def sglang_context():
    """What SGLang's memory code asks of the process it runs in; and views as small as the prompts are."""
    arguments = {"attention_backend": "torch_native", "device": "cpu", "pp_max_micro_batch_size": 64}
    with (
        get_context().override_server_args(**arguments),
        # Of prompts of tens of tokens a fraction would leave all.
        mock.patch.object(values, "FEWEST_SLOTS", 1),
        envs.SGLANG_CHECK_KV_PAGE_INVARIANTS.override(True),
        envs.SGLANG_ENABLE_STRICT_MEM_CHECK_DURING_IDLE.override(1),
    ):
        yield


@lru_cache(maxsize=200_000)
def stamp(prefix: tuple[int, ...], owner: str = "") -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """K and V ``[L, H, D]`` and Q ``[L, Hq, D]`` of the last token of ``prefix``.

    Exact KV is a function of the tokens alone. KV computed over a pruned context is not, and is
    stamped with the request that it belongs to: in the tree it would be seen. All are numbers of e4m3, so
    that a pool of fp8 holds them as they are.
    """
    rng = torch.Generator().manual_seed(hash((prefix, len(owner), *map(ord, owner))) % 2**62)
    k, v = torch.randn((2, LAYERS, HEADS, DIM), generator=rng).to(FP8).float()
    return k, v, torch.randn((LAYERS, QUERY_HEADS, DIM), generator=rng).to(FP8).float()


def expected_output(view, tokens: tuple[int, ...], owner: str) -> torch.Tensor:
    """``[L, Hq, D]``: attention of the last of ``tokens`` over the cells that are left, head by head."""
    start, end = (view.start, view.end) if view else (0, 0)
    query = stamp(tokens, owner if view else "")[2]
    out = torch.empty_like(query)
    for cell in range(CELLS):
        layer, head = divmod(cell, HEADS)
        kept = view.positions.tolist()[slice(*view.cu_cells[cell : cell + 2])] if view else []
        seen = (*range(start), *kept, *range(end, len(tokens)))
        cells = [stamp(tokens[: i + 1], owner if view and i >= end else "") for i in seen]
        k, v = (torch.stack([cell[i][layer, head] for cell in cells]) for i in (0, 1))
        group = slice(head * QUERY_HEADS // HEADS, (head + 1) * QUERY_HEADS // HEADS)
        out[layer, group] = (query[layer, group] @ k.T * DIM**-0.5).softmax(dim=-1) @ v
    return out


class Attention(torch.nn.Module):
    def __init__(self, layer: int, **options) -> None:
        super().__init__()
        options = {"num_heads": QUERY_HEADS, "num_kv_heads": HEADS, "head_dim": DIM} | options
        self.attn = RadixAttention(scaling=DIM**-0.5, layer_id=layer, **options)
        self.o_proj = torch.nn.Linear(QUERY_HEADS * DIM, 8, bias=False)
        self.attn.k_scale, self.attn.k_scale_float = torch.tensor(K_SCALE), K_SCALE
        self.attn.v_scale, self.attn.v_scale_float = torch.tensor(V_SCALE), V_SCALE


class TinyModel(torch.nn.Module):
    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.layers = torch.nn.ModuleList(Attention(i) for i in range(LAYERS))


class WritingBackend(AttentionBackend):
    """Stock attention as far as memory is concerned: it writes KV, and reads nothing."""

    def __init__(self, scheduler: "Scheduler") -> None:
        self.pool = scheduler.pool

    def init_forward_metadata(self, forward_batch) -> None:
        pass

    def init_cuda_graph_state(self, max_bs, max_num_tokens) -> None:
        pass

    def forward_extend(self, q, k, v, layer, forward_batch, save_kv_cache=True, **kw):
        place = KVWriteLoc(forward_batch.out_cache_loc, None)
        self.pool.set_kv_buffer(layer, place, k, v, layer.k_scale, layer.v_scale)
        return None

    forward_decode = forward_extend


class RecordingStream(ForwardStream):
    """Writes down what a stream of a GPU would be asked for: ``"behind"``, and tensors to keep."""

    def __init__(self) -> None:
        super().__init__(None, "cpu")
        self.asked = []

    @contextmanager
    def behind(self):
        self.asked.append("behind")
        yield

    def keep(self, tensor: torch.Tensor) -> None:
        self.asked.append(tensor)


class Scheduler(stock.Scheduler):
    """SGLang's scheduler, turn by turn, with the loop that overlaps and the one that does not.

    Args:
        tree: which of ``TREES``.
        graphs: decode as graphs are replayed.
        stock: makes the attention backend that LaProx is put in front of.
        kv_events: as with ``--kv-events-config``; ``tree_cache.take_events`` has them.
        kv_dtype: of the KV pool.
        host: slots in host memory per slot of the pool, as ``--hicache-ratio``; 0 for no host tier.
        host_layout: as ``--hicache-mem-layout``.
        order: as ``--schedule-policy``.

    Attributes:
        tree: as given.
        arrived: every request since the last flush.
        prefilled, decoded: of the last forward pass, which was one of them, and if attention was
            computed, for every token: (request, its view, its tokens, outputs ``[L, Hq, D]``).
    """

    def __init__(
        self,
        size=64,
        rows=4,
        context=64,
        config=CONFIG,
        tree="rust",
        overlap=False,
        seed=0,
        graphs=False,
        stock=WritingBackend,
        kv_events=False,
        kv_dtype=torch.float32,
        host=0.0,
        host_layout="page_first",
        host_policy="write_through",
        order="fcfs",
    ):
        # Not super().__init__(), which loads a model and starts to listen.
        self.tree = tree
        self.random = random.Random(seed)
        self.arrived, self.prefilled, self.decoded, self.no_room = [], [], [], 0
        self.graphs, self.captured = graphs, (2, rows)
        self.enable_hierarchical_cache = host > 0
        with get_memory().override(
            hicache_ratio=host or None, hicache_mem_layout=host_layout, hicache_write_policy=host_policy
        ):
            self._make_memory(size, rows, context, config, tree, stock, kv_events, kv_dtype)
        self._set_options(overlap, context)
        self._make_parts(order)

    def _make_memory(self, size, rows, context, config, tree, stock, kv_events, kv_dtype) -> None:
        self.pool = LaproxKVPool(size, 1, kv_dtype, HEADS, DIM, LAYERS, "cpu", False)
        self.token_to_kv_pool_allocator = TokenToKVPoolAllocator(size, torch.int64, "cpu", self.pool, False)
        self.req_to_token_pool = ReqToTokenPool(rows, context, "cpu", False)
        self.rows = self.req_to_token_pool.req_to_token
        self.model = TinyModel()
        self.stream = RecordingStream()
        layers = scored_layers(self.model)
        self.laprox = Runtime(
            config, layers, self.pool, self.rows, 4 * context, torch.float32, self.stream, ONE_RANK
        )
        self.backend = with_laprox(stock(self), self.laprox)
        self.backend.init_cuda_graph_state(rows, rows)
        runner = SimpleNamespace(
            attn_backend=self.backend, prefill_aware_swa=False, shared_read_done_event=None
        )
        self.tp_worker = self.model_worker = SimpleNamespace(
            model_runner=runner,
            last_shared_read_runner=runner,
            register_hicache_layer_transfer_counter=lambda counter: None,
        )
        params = CacheInitParams(
            tree == "off",
            self.req_to_token_pool,
            self.token_to_kv_pool_allocator,
            1,
            tree_core_backend={"off": "rust", "sessions": "python"}.get(tree, tree),
            enable_session_radix_cache=tree == "sessions",
            enable_kv_cache_events=kv_events,
        )
        build = SimpleNamespace(
            server_args=None,
            params=params,
            tp_worker=self.tp_worker,
            is_hybrid_swa=False,
            is_hybrid_ssm=False,
            enable_hierarchical_cache=self.enable_hierarchical_cache,
        )
        stock_pool = assembler.get_mha_host_pool_cls
        with mock.patch.object(
            assembler, "get_mha_host_pool_cls", lambda infos: pool_for(stock_pool(infos), infos)
        ):
            self.tree_cache = make_cache(build)
        self.transfers = None
        if self.enable_hierarchical_cache:
            self.transfers = self.tree_cache.cache_controller.l2_transfer_engine = LateTransfers()
        core = type(self.tree_cache.tree_core).__name__
        assert tree == "off" or core.startswith("Rust") == (tree == "rust"), f"{tree} is served by {core}"

    def _set_options(self, overlap: bool, context: int) -> None:
        """A scheduler of one rank, in which everything is off that can be."""
        self.enable_overlap = self.enable_skip_finishing_decode = overlap
        self.page_size = 1
        self.is_generation, self.device = True, "cpu"
        self.max_total_num_tokens, self.max_running_requests = self.pool.size, 64
        self.max_prefill_tokens, self.max_req_len = 1024, context
        self.max_prefill_bs = self.processed_tokens_counter = self.forward_ct = 0
        self._prefill_decode_interval_remaining = self.prefill_decode_interval = 0
        self.disaggregation_mode = DisaggregationMode.NULL
        self.spec_algorithm = SpeculativeAlgorithm.NONE
        self.model_config = SimpleNamespace(
            vocab_size=VOCABULARY, is_encoder_decoder=False, self_opened_think_start_ids=None
        )
        for name in (
            "enable_hicache_storage enable_lmcache enable_hisparse enable_lora "
            "enable_unified_cache_external_linker enable_unified_memory enable_priority_scheduling "
            "enable_priority_preemption enable_overlap_mlx enable_continuous_input_polling is_hybrid_swa "
            "is_hybrid_ssm is_mixed_chunk require_mlp_sync _engine_paused"
        ).split():
            setattr(self, name, False)
        for name in (
            "scheduler_stage_metrics dllm_config decode_offload_manager hisparse_coordinator mm_receiver "
            "lora_drainer prefill_delayer min_free_slots_delayer dynamic_chunk_sizer truncation_align_size "
            "max_queued_requests _pending_chunked_abort_req _pause_started_at draft_worker"
        ).split():
            setattr(self, name, None)
        self.priority_scheduling_preemption_threshold = 0

    def _make_parts(self, order: str) -> None:
        self.running_batch = ScheduleBatch(reqs=[])
        self.last_batch = self.chunked_req = None
        self.waiting_queue, self.result_queue = [], deque()
        self.new_token_ratio_tracker = NewTokenRatioTracker(init=0.5, min=0.5, decay=0.0, current=0.5)
        self.policy = SchedulePolicy(order, self.tree_cache, False, False, False)
        # These watch, report or serve what is off.
        for name in (
            "metrics_reporter metrics_collector output_streamer kv_events_publisher grammar_manager "
            "beam_coordinator dp_attn_adapter ngram_embedding_manager load_inquirer logprob_result_processor"
        ).split():
            setattr(self, name, mock.MagicMock())
        self.grammar_manager.has_waiting_grammars.return_value = False
        self.beam_coordinator.pending_member_rows.return_value = 0
        self.beam_coordinator.commit_decode.return_value = set()
        self.load_inquirer._get_num_pending_tokens.return_value = 0
        self.dp_attn_adapter.maybe_prepare_mlp_sync_batch.side_effect = lambda batch, **kwargs: batch
        self.dp_attn_adapter.maybe_convert_decode_to_extend.side_effect = lambda batch: batch
        self.ngram_embedding_manager.prepare_for_forward.side_effect = lambda batch, **kwargs: batch
        self.batch_result_processor = self._part(SchedulerBatchResultProcessor)
        self.session_controller = SimpleNamespace(sessions={})
        self.full_tokens_per_layer = self.swa_tokens_per_layer = None
        self.pool_stats_observer = self._part(SchedulerPoolStatsObserver)
        self.invariant_checker = self._part(
            SchedulerInvariantChecker,
            get_last_batch=lambda: self.last_batch,
            get_running_batch=lambda: self.running_batch,
            get_chunked_req=lambda: self.chunked_req,
        )

    def _part(self, kind: type, **given):
        """A component of SGLang's scheduler, made of what the scheduler has under the same names."""
        known = (name for name in kind.__dataclass_fields__ if name not in given and hasattr(self, name))
        return kind(**{name: getattr(self, name) for name in known}, **given)

    def send_abort_output(self, recv_req, req) -> None:
        """Nobody is told."""

    def arrive(self, tokens, max_new_tokens=4, session=None, **laprox) -> Req:
        params = SamplingParams(
            max_new_tokens=max_new_tokens, custom_params={"laprox": {"return_kept": True} | laprox}
        )
        params.normalize(None)
        req = Req(f"r{self.random.getrandbits(60):x}", "", array("q", tokens), params, vocab_size=VOCABULARY)
        req.true_ids = list(tokens)
        if session is not None:
            req.session_id = session
            req.session_generation = self.tree_cache.ensure_session_generation(session)
        self.arrived.append(req)
        self._add_request_to_queue(req)
        return req

    def step(self, chunk_size: int = 1024, retract: bool = False) -> ScheduleBatch | None:
        """One turn of ``event_loop_overlap`` or ``event_loop_normal``.

        Args:
            retract: as if the pool were full for the next decode step.
        """
        self.chunked_prefill_size = chunk_size
        with (
            mock.patch.multiple(stock, TEST_RETRACT=retract, TEST_RETRACT_INTERVAL=1),
            # Whether a second prompt may come in chunks is asked of the flags, not of the policy.
            get_schedule().override(schedule_policy=self.policy.policy.value),
        ):
            plan = self.get_next_batch_to_run(running_batch=self.running_batch, last_batch=self.last_batch)
        self.running_batch = plan.running_batch
        batch = plan.batch_to_run
        if batch:
            self.result_queue.append((batch.copy(), self.run_batch(batch)))
        if not self.enable_overlap:
            self._process_results(0)
        elif self.last_batch:
            self._process_results(1 if batch else 0)
        self.last_batch = batch
        self.check_busy()
        return batch

    def check_busy(self) -> None:
        """SGLang's leak check of a busy scheduler, with our correction of what it counts."""
        kind = SchedulerInvariantChecker
        stock_sizes = kind._get_total_uncached_sizes
        with mock.patch.object(
            kind, "_get_total_uncached_sizes", lambda checker: without_spared(stock_sizes(checker), checker)
        ):
            self.invariant_checker.self_check_during_busy()

    def run_until_idle(self, chunk_size: int = 1024) -> None:
        while not self.idle():
            self.step(chunk_size)

    def idle(self) -> bool:
        batches = (self.running_batch, self.last_batch)
        return not (self.waiting_queue or self.chunked_req or any(b and b.reqs for b in batches))

    def live(self) -> list[Req]:
        """Requests that hold a row, each once."""
        batches = (self.running_batch, self.last_batch, *(batch for batch, _ in self.result_queue))
        found = {id(req): req for batch in batches if batch for req in batch.reqs}
        if self.chunked_req:
            found[id(self.chunked_req)] = self.chunked_req
        return [req for req in found.values() if req.kv.holds_kv]

    def run_batch(self, batch: ScheduleBatch, pp_proxy_tensors=None) -> GenerationBatchResult:
        self.forward_ct += 1
        result = hooks.run_batch(type(self)._forward, self, batch)
        if batch.forward_mode.is_extend():
            self.no_room += sum(req.laprox.outcome.plan.reason == "no_room" for req in batch.reqs)
        return result

    def _forward(self, batch: ScheduleBatch) -> GenerationBatchResult:
        """The model: stamps for K, V and Q of every new token, through the attention backend."""
        if self.transfers is not None:
            self.transfers.copy_loads()
        decode = batch.forward_mode.is_decode()
        asked, stamps = [], []
        for req, length in zip(batch.reqs, batch.seq_lens.tolist(), strict=True):
            if not decode:
                req.true_ids = list(req.full_untruncated_fill_ids)
            chunk = range(length - 1, length) if decode else range(req.prefix_len, req.extend_end)
            prefixes = [tuple(req.true_ids[: i + 1]) for i in chunk]
            asked += [(req, view_of(req), prefix) for prefix in prefixes]
            stamps += [stamp(prefix, req.rid if req.laprox.view else "") for prefix in prefixes]
        k, v, q = (torch.stack(x, dim=1) for x in zip(*stamps, strict=True))
        forward_batch = self.forward_batch(batch)
        if decode and self.graphs:
            outputs = self._replay(forward_batch, q, k, v)
        else:
            self.backend.init_forward_metadata(forward_batch)
            outputs = self.attend(forward_batch, q, k, v)
        computed = []
        if outputs[0] is not None:
            outputs = torch.stack(outputs, 1)[: len(asked)].view(-1, LAYERS, QUERY_HEADS, DIM)
            computed = [(*about, output) for about, output in zip(asked, outputs, strict=True)]
        self.prefilled, self.decoded = ([], computed) if decode else (computed, [])
        sampled = [self.random.randrange(VOCABULARY) for _ in batch.reqs]
        for req, token in zip(batch.reqs, sampled, strict=True):
            # What the device knows: with overlap the host learns of the token one step later.
            req.true_ids.append(token)
        return GenerationBatchResult(
            next_token_ids=torch.tensor(sampled),
            extend_input_len_per_req=batch.extend_lens,
            extend_logprob_start_len_per_req=batch.extend_logprob_start_lens,
        )

    @staticmethod
    def forward_batch(batch: ScheduleBatch) -> ForwardBatch:
        extend = batch.forward_mode.is_extend()
        prefix_lens, extend_lens = (batch.prefix_lens, batch.extend_lens) if extend else (None, None)
        return ForwardBatch(
            forward_mode=batch.forward_mode,
            batch_size=len(batch.reqs),
            input_ids=batch.input_ids,
            req_pool_indices=batch.req_pool_indices,
            seq_lens=batch.seq_lens,
            seq_lens_cpu=batch.seq_lens_cpu,
            seq_lens_sum=batch.seq_lens_sum,
            out_cache_loc=batch.out_cache_loc,
            extend_prefix_lens_cpu=prefix_lens,
            extend_seq_lens_cpu=extend_lens,
            extend_seq_lens=torch.tensor(extend_lens) if extend else None,
        )

    def attend(self, forward_batch, q, k, v) -> list[torch.Tensor]:
        """The attention of every layer."""
        decode = forward_batch.forward_mode.is_decode()
        forward = self.backend.forward_decode if decode else self.backend.forward_extend
        layers = enumerate(self.model.layers)
        return [forward(q[i].flatten(1), k[i], v[i], layer.attn, forward_batch) for i, layer in layers]

    def _replay(self, forward_batch: ForwardBatch, q, k, v) -> list[torch.Tensor]:
        """A decode step as ``DecodeCudaGraphRunner`` replays it: padded to a captured size, and blind to
        ``req_to_token``, which the schedule stream writes meanwhile."""
        size = min(size for size in self.captured if size >= forward_batch.batch_size)
        padding = (0, size - forward_batch.batch_size)
        q, k, v = (torch.nn.functional.pad(x, (0, 0, 0, 0, *padding)) for x in (q, k, v))
        padded = replace(
            forward_batch,
            batch_size=size,
            req_pool_indices=torch.nn.functional.pad(forward_batch.req_pool_indices, padding),
            seq_lens=torch.nn.functional.pad(forward_batch.seq_lens, padding, value=1),
            seq_lens_cpu=torch.nn.functional.pad(forward_batch.seq_lens_cpu, padding, value=1),
            out_cache_loc=torch.nn.functional.pad(forward_batch.out_cache_loc, padding),
        )
        self.backend.init_forward_metadata_out_graph(padded)
        written = self.rows.clone()
        self.rows.fill_(-1)
        self.backend.init_forward_metadata_in_graph(padded)
        outputs = self.attend(padded, q, k, v)
        self.rows.copy_(written)
        return outputs

    def _process_results(self, keep: int) -> None:
        while len(self.result_queue) > keep:
            batch, result = self.result_queue.popleft()
            self.process_batch_result(batch, result)

    def process_batch_result(self, batch: ScheduleBatch, result: GenerationBatchResult) -> None:
        processor = self.batch_result_processor
        decode = batch.forward_mode.is_decode()
        (processor.process_batch_result_decode if decode else processor.process_batch_result_prefill)(
            batch, result
        )
        self.tree_cache.flush_pending_backups()

    def abort(self, req: Req) -> None:
        self.abort_request(AbortReq(rid=req.rid))

    def retract_everything(self) -> None:
        """A pause that gives all memory back and takes the chunked request as well; then it goes on."""
        self.pause_generation(PauseGenerationReqInput(mode="retract"))
        self._engine_paused = False

    def kv(self, slot: int, keys=None, values=None) -> tuple[torch.Tensor, torch.Tensor]:
        """K and V ``[L, H, D]`` that a slot stands for, of the pool or of another like it."""
        scales = (K_SCALE, V_SCALE) if self.pool.dtype == FP8 else (1, 1)
        pools = (self.pool.keys, self.pool.values) if keys is None else (keys, values)
        k, v = (pool[slot].float() for pool in pools)
        return k * scales[0], v * scales[1]

    def settle(self) -> None:
        """All copies to host memory and back end, and are noticed."""
        if self.transfers is not None:
            self.tree_cache.flush_pending_backups()
            self.transfers.end(len(self.transfers.writes) + len(self.transfers.loads))
            self.tree_cache.check_hicache_events()

    def flush(self) -> None:
        self.settle()
        self.last_batch = None
        self.arrived.clear()
        self.tree_cache.reset()
        self.req_to_token_pool.clear()
        self.token_to_kv_pool_allocator.clear()
