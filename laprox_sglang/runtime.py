"""Prunes prompts: what happens around each forward pass of a scheduler."""

from contextlib import nullcontext
from dataclasses import dataclass
from typing import Any

import torch

import laprox_kernels as kernels
from laprox_kernels import Rows
from laprox_sglang.config import Config, Options
from laprox_sglang.gram import gram_matrices
from laprox_sglang.plan import Plan, make_plan
from laprox_sglang.pool import LaproxKVPool
from laprox_sglang.report import Totals
from laprox_sglang.segment import Outcome, RequestState, Segment


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
    them the attention backend calls ``prepare_decode``, ``observe`` and reads ``decode_rows``. Forward
    passes that are not bracketed (warm-up, graph capture) find no jobs and no rows.
    """

    def __init__(
        self, config: Config, model: torch.nn.Module, pool: LaproxKVPool, req_to_token: torch.Tensor
    ) -> None:
        """
        Args:
            req_to_token: int32 ``[rows, context]``, slot of each logical column of a request's row.

        Raises:
            UnsupportedModel: the model's attention is not what LaProx scores.
        """
        self.config = config
        self.pool = pool
        self.totals = Totals()
        self.decode_rows: Rows | None = None
        self.decode_plan: torch.Tensor | None = None
        self._model = model
        self._req_to_token = req_to_token
        self._jobs: list[Job] = []
        self._segments: list[Segment | None] = []
        self.load_weights()

    def load_weights(self) -> None:
        """Computes the Gram matrices; again after every weight update."""
        self._gram = gram_matrices(self._model)

    def begin(self, batch: Any) -> None:
        """Plans what is new in an SGLang ``ScheduleBatch`` and prepares its forward pass."""
        if batch.forward_mode.is_extend():
            self._begin_extend(batch)
        elif batch.forward_mode.is_decode():
            self._segments = [segment_of(req) for req in batch.reqs]

    def _begin_extend(self, batch: Any) -> None:
        token = 0
        for req in batch.reqs:
            state = self._admit(req)
            chunk = req.extend_range
            if state.will_prune:
                last = chunk.end == len(req.full_untruncated_fill_ids)
                job = self._job(req, state, token, last)
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
                cached=req.cache_protected_len,
                end=len(req.full_untruncated_fill_ids),
                new_tokens=req.sampling_params.max_new_tokens - len(req.output_ids),
            )
            private = state.plan.length
            state.outcome = Outcome(state.plan, private, private, None)
        return state

    def _job(self, req: Any, state: RequestState, token: int, last: bool) -> Job:
        plan = state.plan
        assert plan is not None
        chunk = req.extend_range
        window = plan.end - self.config.window
        first = max(chunk.start, window)
        queries = slice(token + first - chunk.start, token + max(chunk.end, first) - chunk.start)
        row = scores = None
        if last:
            row = self._req_to_token[req.req_pool_idx, : plan.end].to(torch.int64, copy=True)
            layers, heads = self.pool.keys.shape[1:3]
            scores = torch.empty(
                (layers, heads, plan.length), dtype=torch.float32, device=self.pool.keys.device
            )
        return Job(state, plan, req.req_pool_idx, queries, first - window, row, scores)

    def prepare_decode(self, req_pool_indices: torch.Tensor, seq_lens: torch.Tensor) -> None:
        """Lays out the rows of a decode batch, if any of them is compressed.

        Args:
            req_pool_indices: int64 ``[B]``, rows of ``req_to_token``.
            seq_lens: int64 ``[B]``, logical lengths, the new token included.
        """
        self.decode_rows = None
        if any(self._segments):
            assert len(self._segments) == len(req_pool_indices)
            self.decode_rows = self._layout(req_pool_indices, seq_lens)
            self.decode_plan = kernels.plan_decode(self.decode_rows, *self.pool.keys.shape[1:3])

    def _layout(self, req_pool_indices: torch.Tensor, seq_lens: torch.Tensor) -> Rows:
        device = self._req_to_token.device
        layers, heads = self.pool.keys.shape[1:3]
        whole = torch.zeros(layers * heads + 1, dtype=torch.int64, device=device)
        start, slots, end = torch.tensor(
            [(s.start, s.slots, s.end) if s else (0, 0, 0) for s in self._segments], device=device
        ).unbind(1)
        dense = seq_lens.to(device, torch.int64) - (end - start)
        column = torch.arange(int((dense + slots).max()), device=device)[None]
        # Dense columns first: those before the segment, those after it; then the packed slots.
        logical = torch.where(
            column < start[:, None],
            column,
            torch.where(
                column < dense[:, None],
                column - start[:, None] + end[:, None],
                column - dense[:, None] + start[:, None],
            ),
        )
        logical = logical.masked_fill(column >= (dense + slots)[:, None], 0)
        return Rows(
            slots=self._req_to_token[req_pool_indices[:, None], logical].to(torch.int64),
            dense=dense,
            segment_start=dense[:, None],
            cu_cells=torch.stack([s.cu_cells if s else whole for s in self._segments])[:, None],
        )

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
        self._segments = []
        self.decode_rows = None
        for job in jobs:
            with scheduler.forward_stream_ctx if scheduler.enable_overlap else nullcontext():
                segment, slots = self._prune(job)
            allocator = scheduler.token_to_kv_pool_allocator
            available = allocator.available_size()
            allocator.free(slots[segment.slots :])
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
        positions = kept % plan.length + plan.start if job.state.options.return_kept else None
        return Segment(plan.start, plan.end, plan.slots, len(scores), cu_cells, positions), slots


def segment_of(req: Any) -> Segment | None:
    """Segment of an SGLang ``Req``, if its prompt has been pruned."""
    state: RequestState | None = getattr(req, "laprox", None)
    return state.segment if state else None
