"""A scheduler small enough to check after every step.

Everything that owns slots is real: SGLang's ``Req``, ``ScheduleBatch``, ``PrefillAdder``, pools,
allocator and tree; LaProx's pool, caches, runtime, attention mixin and hooks. Only the loop around
them is written again, after ``sglang/srt/managers/scheduler.py``, and the model is replaced by
values that tell which token, behind which prefix, they belong to.
"""

import random
from array import array
from contextlib import contextmanager, nullcontext
from functools import lru_cache
from types import SimpleNamespace

import torch
from sglang.srt.disaggregation.utils import prepare_abort
from sglang.srt.layers.attention.base_attn_backend import AttentionBackend
from sglang.srt.layers.radix_attention import RadixAttention
from sglang.srt.managers.schedule_batch import FINISH_ABORT, Req, ScheduleBatch, retract_all
from sglang.srt.managers.schedule_policy import AddReqResult, PrefillAdder
from sglang.srt.mem_cache.allocator import TokenToKVPoolAllocator
from sglang.srt.mem_cache.cache_init_params import CacheInitParams
from sglang.srt.mem_cache.common import maybe_cache_unfinished_req, release_kv_cache
from sglang.srt.mem_cache.memory_pool import KVWriteLoc, ReqToTokenPool
from sglang.srt.runtime_context import get_context, get_server_args
from sglang.srt.sampling.sampling_params import SamplingParams
from sglang.srt.speculative.spec_info import SpeculativeAlgorithm

import laprox_patches.scheduler as hooks
from laprox_sglang.attention import with_laprox
from laprox_sglang.config import Config
from laprox_sglang.pool import LaproxKVPool
from laprox_sglang.radix_cache import LaproxChunkCache, LaproxRadixCache
from laprox_sglang.runtime import Runtime
from laprox_sglang.segment import segment_of

LAYERS, HEADS, QUERY_HEADS, DIM = 2, 2, 4, 4
CELLS = LAYERS * HEADS
VOCABULARY = 4
CONFIG = Config(budget=0.4, window=3, pooling_kernel=3, min_tokens=8, sink_tokens=2)


@contextmanager
def sglang_context():
    """What SGLang's memory code asks of the process it runs in."""
    with get_context().override_server_args(attention_backend="torch_native", device="cpu"):
        yield


@lru_cache(maxsize=200_000)
def stamp(prefix: tuple[int, ...], owner: str = "") -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """K and V ``[L, H, D]`` and Q ``[L, Hq, D]`` of the last token of ``prefix``.

    Exact KV is a function of the tokens alone. KV computed over a pruned context is not, and is
    stamped with the request that it belongs to: in the tree it would be seen.
    """
    rng = torch.Generator().manual_seed(hash((prefix, len(owner), *map(ord, owner))) % 2**62)
    k, v = torch.randn((2, LAYERS, HEADS, DIM), generator=rng)
    return k, v, torch.randn((LAYERS, QUERY_HEADS, DIM), generator=rng)


def expected_output(segment, tokens: tuple[int, ...], owner: str) -> torch.Tensor:
    """``[L, Hq, D]``: attention of the last of ``tokens`` over the cells that are left, head by head."""
    start, end = (segment.start, segment.end) if segment else (0, 0)
    query = stamp(tokens, owner if segment else "")[2]
    out = torch.empty_like(query)
    for cell in range(CELLS):
        layer, head = divmod(cell, HEADS)
        kept = segment.positions.tolist()[slice(*segment.cu_cells[cell : cell + 2])] if segment else []
        seen = (*range(start), *kept, *range(end, len(tokens)))
        cells = [stamp(tokens[: i + 1], owner if segment and i >= end else "") for i in seen]
        k, v = (torch.stack([cell[i][layer, head] for cell in cells]) for i in (0, 1))
        group = slice(head * QUERY_HEADS // HEADS, (head + 1) * QUERY_HEADS // HEADS)
        out[layer, group] = (query[layer, group] @ k.T * DIM**-0.5).softmax(dim=-1) @ v
    return out


def leak_checker(last_batch, running_batch) -> SimpleNamespace:
    """What our correction reads of SGLang's ``SchedulerInvariantChecker``."""
    return SimpleNamespace(get_last_batch=lambda: last_batch, get_running_batch=lambda: running_batch)


class Attention(torch.nn.Module):
    def __init__(self, layer: int, **options) -> None:
        super().__init__()
        options = {"num_heads": QUERY_HEADS, "num_kv_heads": HEADS, "head_dim": DIM} | options
        self.attn = RadixAttention(scaling=DIM**-0.5, layer_id=layer, **options)
        self.o_proj = torch.nn.Linear(QUERY_HEADS * DIM, 8, bias=False)


class TinyModel(torch.nn.Module):
    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.layers = torch.nn.ModuleList(Attention(i) for i in range(LAYERS))


class WritingBackend(AttentionBackend):
    """Stock attention as far as memory is concerned: it writes KV, and reads nothing."""

    def __init__(self, pool: LaproxKVPool) -> None:
        self.pool = pool

    def init_forward_metadata(self, forward_batch) -> None:
        pass

    def init_cuda_graph_state(self, max_bs, max_num_tokens) -> None:
        pass

    def forward_extend(self, q, k, v, layer, forward_batch, save_kv_cache=True, **kw):
        self.pool.set_kv_buffer(layer, KVWriteLoc(forward_batch.out_cache_loc, None), k, v)
        return None

    forward_decode = forward_extend


class Scheduler:
    """``Scheduler`` of SGLang, with the loop that overlaps and the one that does not."""

    def __init__(
        self, size=64, rows=4, context=64, config=CONFIG, tree=True, overlap=False, seed=0, graphs=False
    ):
        self.model_config = SimpleNamespace(vocab_size=VOCABULARY, is_encoder_decoder=False)
        self.enable_overlap = overlap
        self.forward_stream_ctx = nullcontext()
        self.random = random.Random(seed)
        self.pool = LaproxKVPool(size, 1, torch.float32, HEADS, DIM, LAYERS, "cpu", False)
        self.token_to_kv_pool_allocator = TokenToKVPoolAllocator(size, torch.int64, "cpu", self.pool, False)
        self.req_to_token_pool = ReqToTokenPool(rows, context, "cpu", False)
        self.rows = self.req_to_token_pool.req_to_token
        self.model = TinyModel()
        self.laprox = Runtime(config, self.model, self.pool, self.rows, 4 * context, torch.float32)
        self.backend = with_laprox(WritingBackend(self.pool), self.laprox)
        self.graphs, self.captured = graphs, (2, rows)
        self.backend.init_cuda_graph_state(rows, rows)
        self.tp_worker = SimpleNamespace(model_runner=SimpleNamespace(attn_backend=self.backend))
        params = CacheInitParams(not tree, self.req_to_token_pool, self.token_to_kv_pool_allocator, 1)
        self.tree_cache = (LaproxRadixCache if tree else LaproxChunkCache)(params, self.laprox.totals)
        self.running_batch = ScheduleBatch(reqs=[])
        self.last_batch = self.chunked_req = self.pending_abort = None
        self.waiting_queue, self.results = [], []
        self.batch_record_buf, self.batch_record_ct = [[]], 0
        self.decoded = []  # of the last decode step: (request, its segment, its tokens, outputs [L, Hq, D])

    def arrive(self, tokens, max_new_tokens=4, **laprox) -> Req:
        params = SamplingParams(
            max_new_tokens=max_new_tokens, custom_params={"laprox": {"return_kept": True} | laprox}
        )
        params.normalize(None)
        req = Req(f"r{self.random.getrandbits(60):x}", "", array("q", tokens), params, vocab_size=VOCABULARY)
        self.waiting_queue.append(req)
        return req

    def step(self, chunk_size: int = 1024, retract: bool = False) -> ScheduleBatch | None:
        """One turn of the event loop."""
        batch = self._next_batch(chunk_size, retract)
        if batch:
            sampled = hooks.run_batch(type(self)._forward, self, batch)
            self.results.append((batch.copy(), sampled))
        if not self.enable_overlap:
            self._process_results(0)
        elif self.last_batch:
            self._process_results(1 if batch else 0)
        self.last_batch = batch
        return batch

    def run_until_idle(self, chunk_size: int = 1024) -> None:
        while not self.idle():
            self.step(chunk_size)

    def idle(self) -> bool:
        batches = (self.running_batch, self.last_batch)
        return not (self.waiting_queue or self.chunked_req or any(b and b.reqs for b in batches))

    def live(self) -> list[Req]:
        """Requests that hold a row, each once."""
        batches = (self.running_batch, self.last_batch, *(batch for batch, _ in self.results))
        found = {id(req): req for batch in batches if batch for req in batch.reqs}
        if self.chunked_req:
            found[id(self.chunked_req)] = self.chunked_req
        return [req for req in found.values() if req.req_pool_idx is not None]

    def _next_batch(self, chunk_size: int, retract: bool) -> ScheduleBatch | None:
        self._abort_chunked()
        exclude = []
        if self.chunked_req is not None:
            exclude.append(self.chunked_req)
            if self.chunked_req.extend_range.end > len(self.chunked_req.prefix_indices):
                maybe_cache_unfinished_req(self.chunked_req, self.tree_cache, chunked=True)
        last, running = self.last_batch, self.running_batch
        if last and last.forward_mode.is_extend():
            if last.chunked_req is not None:
                exclude.append(last.chunked_req)
            size = last.batch_size()
            last.filter_batch(chunked_req_to_exclude=exclude)
            if last.batch_size() < size:
                running.batch_is_full = False
            if not last.is_empty():
                if running.is_empty():
                    self.running_batch = last
                else:
                    running.merge_batch(last)
        return self._new_prefill(chunk_size) or self._next_decode(retract)

    def _new_prefill(self, chunk_size: int) -> ScheduleBatch | None:
        running = self.running_batch
        if (running.batch_is_full or not self.waiting_queue) and self.chunked_req is None:
            return None
        allocator = self.token_to_kv_pool_allocator
        adder = PrefillAdder(1, self.tree_cache, allocator, running, 0.5, 1024, chunk_size)
        if self.chunked_req is not None:
            self.chunked_req.init_next_round_input()
            self.chunked_req = adder.add_chunked_req(self.chunked_req)
        for req in self.waiting_queue:
            if len(adder.can_run_list) >= self.req_to_token_pool.available_size():
                running.batch_is_full = True
                break
            req.init_next_round_input(self.tree_cache)
            result = adder.add_one_req(req, self.chunked_req is not None, None)
            if result != AddReqResult.CONTINUE:
                running.batch_is_full |= result == AddReqResult.NO_TOKEN
                break
        if not adder.can_run_list:
            return None
        self.waiting_queue = [req for req in self.waiting_queue if req not in adder.can_run_list]
        self.chunked_req = adder.new_chunked_req or self.chunked_req
        if self.chunked_req is not None:
            self.chunked_req.inflight_middle_chunks += 1
        batch = ScheduleBatch.init_new(
            adder.can_run_list, self.req_to_token_pool, allocator, self.tree_cache, self.model_config,
            self.enable_overlap, SpeculativeAlgorithm.NONE, chunked_req=self.chunked_req,
        )  # fmt: skip
        batch.prepare_for_extend()
        return batch

    def _next_decode(self, retract: bool) -> ScheduleBatch | None:
        batch = self.running_batch
        size = batch.batch_size()
        batch.filter_batch()
        if not batch.is_empty() and (not batch.check_decode_mem() or retract):
            retracted, _, _ = batch.retract_decode(get_server_args())
            self.waiting_queue += retracted
        if batch.batch_size() < size or batch.is_empty():
            batch.batch_is_full = False
        if batch.is_empty():
            return None
        batch.prepare_for_decode()
        return batch

    def _forward(self, batch: ScheduleBatch) -> list[int]:
        """The model: stamps for K, V and Q of every new token, through the attention backend."""
        decode = batch.forward_mode.is_decode()
        stamps = []
        for req, length in zip(batch.reqs, batch.seq_lens.tolist(), strict=True):
            if not decode:
                req.true_ids = list(req.full_untruncated_fill_ids)
            chunk = range(length - 1, length) if decode else range(*req.extend_range)
            owner = req.rid if req.laprox.segment else ""
            stamps += [stamp(tuple(req.true_ids[: i + 1]), owner) for i in chunk]
        k, v, q = (torch.stack(x, dim=1) for x in zip(*stamps, strict=True))
        if decode and self.graphs:
            outputs = self._replay(batch, q, k, v)
        else:
            self.backend.init_forward_metadata(batch)
            forward = self.backend.forward_decode if decode else self.backend.forward_extend
            layers = enumerate(self.model.layers)
            outputs = [forward(q[i].flatten(1), k[i], v[i], layer.attn, batch) for i, layer in layers]
        self.decoded = []
        if decode and self.laprox.decode.rows is not None:
            outputs = torch.stack(outputs, 1)[: len(batch.reqs)].view(-1, LAYERS, QUERY_HEADS, DIM)
            self.decoded = [
                (req, segment_of(req), tuple(req.true_ids[:length]), output)
                for req, length, output in zip(batch.reqs, batch.seq_lens.tolist(), outputs, strict=True)
            ]
        sampled = [self.random.randrange(VOCABULARY) for _ in batch.reqs]
        for req, token in zip(batch.reqs, sampled, strict=True):
            # What the device knows: with overlap the host learns of the token one step later.
            req.true_ids.append(token)
        return sampled

    def _replay(self, batch: ScheduleBatch, q, k, v) -> list[torch.Tensor]:
        """A decode step as ``DecodeCudaGraphRunner`` replays it: padded to a captured size, and blind to
        ``req_to_token``, which the schedule stream writes meanwhile."""
        size = min(size for size in self.captured if size >= len(batch.reqs))
        padding = (0, size - len(batch.reqs))
        q, k, v = (torch.nn.functional.pad(x, (0, 0, 0, 0, *padding)) for x in (q, k, v))
        view = SimpleNamespace(
            req_pool_indices=torch.nn.functional.pad(batch.req_pool_indices, padding),
            seq_lens=torch.nn.functional.pad(batch.seq_lens, padding, value=1),
            out_cache_loc=torch.nn.functional.pad(batch.out_cache_loc, padding),
        )
        self.backend.init_forward_metadata_out_graph(view)
        written = self.rows.clone()
        self.rows.fill_(-1)
        self.backend.init_forward_metadata_in_graph(view)
        layers = enumerate(self.model.layers)
        forward = self.backend.forward_decode
        outputs = [forward(q[i].flatten(1), k[i], v[i], layer.attn, view) for i, layer in layers]
        self.rows.copy_(written)
        return outputs

    def _process_results(self, keep: int) -> None:
        while len(self.results) > keep:
            batch, sampled = self.results.pop(0)
            prefill = batch.forward_mode.is_extend()
            if not prefill:
                self.token_to_kv_pool_allocator.free_group_begin()
            for req, token in zip(batch.reqs, sampled, strict=True):
                if prefill and req.inflight_middle_chunks > 0 and not req.is_retracted:
                    req.inflight_middle_chunks -= 1
                elif not (req.finished() or req.is_retracted):
                    req.output_ids.append(token)
                    req.update_finish_state()
                    if req.finished():
                        release_kv_cache(req, self.tree_cache)
                    elif prefill:
                        maybe_cache_unfinished_req(req, self.tree_cache)
            if not prefill:
                self.token_to_kv_pool_allocator.free_group_end()

    def abort(self, req: Req) -> None:
        if self.chunked_req is req:
            self.pending_abort = req
        if req in self.waiting_queue:
            self.waiting_queue.remove(req)
        elif not req.finished():
            req.to_finish = FINISH_ABORT()

    def _abort_chunked(self) -> None:
        req, self.pending_abort = self.pending_abort, None
        if req is None or self.chunked_req is not req:
            return
        prepare_abort(req, "Aborted")
        req.to_finish = None
        release_kv_cache(req, self.tree_cache, is_insert=False)
        self.chunked_req = None

    def retract_everything(self) -> None:
        """``pause_generation`` in mode retract; it takes the chunked request as well."""
        self._process_results(0)
        batches = [self.running_batch]
        if self.last_batch and self.last_batch.forward_mode.is_extend():
            batches.append(self.last_batch)
        reqs = [req for batch in batches for req in batch.reqs if not req.finished()]
        if self.chunked_req is not None and self.chunked_req not in reqs:
            reqs.append(self.chunked_req)
        retract_all(
            reqs=reqs,
            server_args=get_server_args(),
            req_to_token_pool=self.req_to_token_pool,
            token_to_kv_pool_allocator=self.token_to_kv_pool_allocator,
            tree_cache=self.tree_cache,
            hisparse_coordinator=None,
        )
        self.last_batch = self.chunked_req = None
        self.running_batch.reqs = []
        self.running_batch.batch_is_full = False
        self.waiting_queue += reqs

    def flush(self) -> None:
        self.last_batch = None
        self.tree_cache.reset()
        self.req_to_token_pool.clear()
        self.token_to_kv_pool_allocator.clear()
