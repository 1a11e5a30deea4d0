"""Prunes prompts: what happens around each forward pass of a scheduler."""

from contextlib import nullcontext
from dataclasses import dataclass
from typing import Any, NamedTuple

import torch

import laprox_kernels as kernels
from laprox_sglang.config import Config, Options
from laprox_sglang.decode_batch import DecodeBatch
from laprox_sglang.gram import attention_layers, gram_matrices
from laprox_sglang.plan import Plan, make_plan
from laprox_sglang.pool import LaproxKVPool
from laprox_sglang.report import Totals
from laprox_sglang.segment import Outcome, RequestState, Segment


class Chunk(NamedTuple):
    start: int
    end: int

    @property
    def length(self) -> int:
        return self.end - self.start


def slice_of(req: Any) -> Chunk:
    return Chunk(req.prefix_len, req.extend_end)


@dataclass(slots=True)
class Job:
    """One request of an extend batch whose prompt will be pruned.

    Attributes:
        state: state of the request; ``plan`` is its plan.
        row_index: row of ``req_to_token`` that the request holds.
        queries: which tokens of the batch are window queries of this request.
        window_offset: place of the first of them in the window.
        row: int64 ``[n]`` slot of every position; only in the last chunk, which scores and prunes.
        scores: float32 ``[L, H, P]``; only in the last chunk.
    """

    state: RequestState
    plan: Plan
    row_index: int
    queries: slice
    window_offset: int
    row: torch.Tensor | None
    scores: torch.Tensor | None


class Runtime:
    """LaProx of one model runner: scores in the forward, then selects, packs and frees.

    A forward pass is bracketed by ``begin`` and ``finish``, both on the host's schedule; between
    them the attention backend calls ``observe``, or reads ``decode``. Forward passes that are not
    bracketed (warm-up, graph capture) find no jobs and no compressed rows. Nothing here waits for
    the device.
    """

    def __init__(
        self,
        config: Config,
        model: torch.nn.Module,
        pool: LaproxKVPool,
        req_to_token: torch.Tensor,
        score_tokens: int,
        dtype: torch.dtype,
    ) -> None:
        """
        Args:
            req_to_token: int32 ``[rows, context]``, slot of each logical column of a request's row.
            score_tokens: private tokens that one batch can prune, as ``memory.score_tokens`` has it.
            dtype: of the queries.

        Raises:
            UnsupportedModel: the model's attention is not what LaProx scores.
            Unsupported: no kernel serves this pool or window on this device.
        """
        self.config = config
        self.pool = pool
        self.totals = Totals()
        layers, heads = pool.keys.shape[1:3]
        self.decode = DecodeBatch(req_to_token, layers, heads)
        self._model = model
        self._req_to_token = req_to_token
        self._jobs: list[Job] = []
        # One buffer for every batch: what runs on the forward stream runs in order.
        self._scores = torch.empty(
            (score_tokens, layers * heads), dtype=torch.float32, device=pool.keys.device
        )
        self._gram = gram_matrices(model)
        self._warm_up(attention_layers(model)[0][0].tp_q_head_num, dtype)

    def load_weights(self) -> None:
        """Computes the Gram matrices anew, after a weight update."""
        gram_matrices(self._model, self._gram)

    def _warm_up(self, query_heads: int, dtype: torch.dtype) -> None:
        """Checks that the kernels serve this model, and has them compiled where they are."""
        keys = self.pool.keys
        queries = torch.zeros(
            (self.config.window, query_heads, keys.shape[3]), dtype=dtype, device=keys.device
        )
        kernels.check_serving(keys, self.pool.values, queries)
        if keys.is_cuda:
            self._compile(queries)

    def _compile(self, queries: torch.Tensor) -> None:
        """Runs all that prunes a prompt, for every kind of length: later ones find it compiled.

        What it writes into the pool is never read: no slot has been given out yet.
        """
        keys, values = self.pool.keys, self.pool.values
        layers, heads = keys.shape[1:3]
        longest = min(len(keys) - 1, len(self._scores))
        for tokens in kernels.lengths_of_every_kind(layers * heads, self.config.min_tokens, longest):
            row = torch.arange(1, tokens + 1, device=keys.device)
            scores = self._scores[:tokens].zero_().view(layers, heads, tokens)
            layer = self.pool.k_buffer[0], self.pool.v_buffer[0], row, 0, self._gram[0]
            kernels.score(queries, *layer, 1.0, 0, self.config.pooling_kernel, out=scores[0])
            # Kept cells are a multiple of 16, or they are not.
            for slots in (1, min(16, tokens)):
                kept, _ = kernels.select(scores, slots * layers * heads)
                kernels.pack(keys, values, row, kept)

    def begin(self, batch: Any) -> None:
        """Plans what is new in an SGLang ``ScheduleBatch`` and prepares its forward pass."""
        if batch.forward_mode.is_extend():
            self._begin_extend(batch)
        elif batch.forward_mode.is_decode():
            self.decode.begin(batch.reqs)

    def _begin_extend(self, batch: Any) -> None:
        # The last capture of a graph may have left a compressed batch behind.
        self.decode.end()
        token = scored = 0
        for req in batch.reqs:
            state = self._admit(req)
            chunk = slice_of(req)
            if state.will_prune:
                last = chunk.end == len(req.full_untruncated_fill_ids)
                job = self._job(req, state, token, scored if last else None)
                if job.scores is not None:
                    scored += job.plan.length
                if job.queries.start < job.queries.stop:
                    self._jobs.append(job)
            token += chunk.length

    def _admit(self, req: Any) -> RequestState:
        """State of a request; its plan is made when it comes in with its first chunk."""
        state: RequestState | None = getattr(req, "laprox", None)
        if state is None:
            state = req.laprox = RequestState(Options.of(req.sampling_params.custom_params))
        if state.plan is None:
            state.plan = make_plan(
                self.config,
                state.options,
                cached=req.kv.cache_protected_len,
                end=len(req.full_untruncated_fill_ids),
                new_tokens=req.sampling_params.max_new_tokens - len(req.output_ids),
            )
            private = state.plan.length
            state.outcome = Outcome(state.plan, private, private, None)
        return state

    def _job(self, req: Any, state: RequestState, token: int, scored: int | None) -> Job:
        """The part that a request has in a batch, where its tokens begin at ``token``.

        Args:
            scored: where its scores begin in the buffer; None if this is not its last chunk.
        """
        plan = state.plan
        assert plan is not None
        chunk = slice_of(req)
        window = plan.end - self.config.window
        first = max(chunk.start, window)
        queries = slice(token + first - chunk.start, token + max(chunk.end, first) - chunk.start)
        row = scores = None
        if scored is not None:
            row = self._req_to_token[req.kv.req_pool_idx, : plan.end].to(torch.int64, copy=True)
            part = self._scores[scored : scored + plan.length]
            assert len(part) == plan.length, "a batch prunes more tokens than its scores have room for"
            scores = part.view(*self.pool.keys.shape[1:3], plan.length)
        return Job(state, plan, req.kv.req_pool_idx, queries, first - window, row, scores)

    def observe(self, layer: Any, queries: torch.Tensor) -> None:
        """Collects window queries after a layer's attention; in a last chunk, scores the layer.

        Args:
            layer: SGLang's ``RadixAttention``; the chunk's K and V are in the pool.
            queries: ``[tokens, Hq·D]`` of the whole batch, after RoPE.
        """
        index = layer.layer_id
        for job in self._jobs:
            window = queries[job.queries].view(-1, layer.tp_q_head_num, layer.qk_head_dim)
            if len(window) < self.config.window:
                window = self._gather_window(job, index, window)
            if job.row is not None and job.scores is not None:
                kernels.score(
                    window,
                    self.pool.k_buffer[index],
                    self.pool.v_buffer[index],
                    job.row,
                    job.plan.start,
                    self._gram[index],
                    layer.scaling,
                    job.plan.sinks,
                    self.config.pooling_kernel,
                    out=job.scores[index],
                )

    def _gather_window(self, job: Job, layer: int, part: torch.Tensor) -> torch.Tensor:
        """The window so far, where it comes in over several chunks: ``[W, Hq, D]``."""
        if job.state.window_queries is None:
            shape = (len(self._gram), self.config.window, *part.shape[1:])
            job.state.window_queries = part.new_empty(shape)
        window = job.state.window_queries[layer]
        window[job.window_offset : job.window_offset + len(part)] = part
        return window

    def finish(self, scheduler: Any) -> None:
        """Prunes what the forward pass has scored, and returns its slots to the allocator.

        Runs right after the forward pass was launched, before anything else is: the first decode
        step, which overlap scheduling launches before it looks at the prefill's result, already
        reads the segment.
        """
        jobs = [job for job in self._jobs if job.row is not None]
        self._jobs = []
        self.decode.end()
        for job in jobs:
            with scheduler.forward_stream_ctx if scheduler.enable_overlap else nullcontext():
                segment, slots = self._prune(job)
            allocator = scheduler.token_to_kv_pool_allocator
            available = allocator.available_size()
            allocator.free(slots[segment.slots :])
            if scheduler.enable_overlap:
                # Made on the schedule stream and read on the forward stream: kept for two steps, as
                # SGLang keeps its own.
                scheduler.batch_record_buf[scheduler.batch_record_ct].append(job.row)
            freed = allocator.available_size() - available
            job.state.segment = segment
            job.state.window_queries = None
            job.state.outcome = Outcome(job.plan, job.plan.length, job.plan.length - freed, segment)
            self.totals.add_prune(freed)
        if jobs:
            # Stock clears this only when a request leaves: admission would sit on the freed slots.
            scheduler.running_batch.batch_is_full = False

    def _prune(self, job: Job) -> tuple[Segment, torch.Tensor]:
        """Selects and packs the kept cells of a private range; returns its slots as well."""
        plan, row, scores = job.plan, job.row, job.scores
        assert row is not None and scores is not None
        cells = self.pool.keys.shape[1] * self.pool.keys.shape[2]
        slots = row[plan.start :]
        kept, cu_cells = kernels.select(scores, plan.slots * cells)
        kernels.pack(self.pool.keys, self.pool.values, slots, kept)
        self._req_to_token[job.row_index, plan.start + plan.slots : plan.end] = 0
        positions = (kept % plan.length + plan.start).int() if job.state.options.return_kept else None
        return Segment.of(plan, len(scores), cu_cells, positions), slots
