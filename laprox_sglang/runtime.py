"""LaProx of one model runner: gives every prompt that is to be pruned its view, after its prefill."""

from collections.abc import Sequence
from typing import NamedTuple

import torch

import laprox_kernels as kernels
from laprox_sglang.attention.decode_batch import DecodeBatch
from laprox_sglang.cache.pool import LaproxKVPool
from laprox_sglang.cache.tree import LaproxCache, Opened
from laprox_sglang.layers import ScoredLayer
from laprox_sglang.options.server import Config
from laprox_sglang.ports import Req
from laprox_sglang.ranks import Ranks
from laprox_sglang.report.reporter import Reporter
from laprox_sglang.streams import ForwardStream
from laprox_sglang.views.plan import Plan
from laprox_sglang.views.prune import Pruner
from laprox_sglang.views.stages import Stages
from laprox_sglang.views.state import Outcome, RequestState, view_of
from laprox_sglang.views.view import View
from laprox_sglang.views.window import Part, Window
from laprox_sglang.warmup import check_scorer, compile_kernels, no_queries


class Chunk(NamedTuple):
    """What a forward pass computes of one prompt.

    Attributes:
        req: the request, as the prefix cache knows it.
        row_index: row of ``req_to_token`` that it holds.
        start, end: columns that are computed.
        plan: of the prompt, whose last chunk ends at ``plan.end``.
    """

    req: Req
    state: RequestState
    row_index: int
    start: int
    end: int
    plan: Plan

    @property
    def last(self) -> bool:
        return self.plan.pruned and self.end == self.plan.end


class Runtime:
    """A prefill is bracketed by ``begin_prefill`` and ``finish_prefill``, both on the host's schedule;
    between them the attention backend calls ``observe``. A decode step begins with ``decode.take_step``.
    Warm-up and the capture of graphs are bracketed by nothing: they find no queries to save, and no view.
    Nothing here waits for the device, but for copies of a host tier where the pool is short.

    Attributes:
        layers: of the model, by SGLang's number.
        ranks: those that share the heads of these.
    """

    def __init__(
        self,
        config: Config,
        layers: Sequence[ScoredLayer],
        pool: LaproxKVPool,
        req_to_token: torch.Tensor,
        longest: int,
        dtype: torch.dtype,
        stream: ForwardStream,
        ranks: Ranks,
    ) -> None:
        """
        Args:
            layers, ranks: as of ``Scoring``.
            req_to_token, longest: as of ``Pruner``.
            dtype: of the queries.
            stream: where views are made.

        Raises:
            BadScorer: as of ``check_scorer``.
            Unsupported: no kernel serves this pool or window on this device.
        """
        queries = no_queries(config, layers, dtype, pool.keys.device)
        kernels.check_serving(pool.keys, pool.values, queries)
        check_scorer(config, layers[0], pool.keys.device)
        self.config = config
        self.pool = pool
        self.ranks = ranks
        self.report = Reporter()
        self.layers = {layer.module.layer_id: layer for layer in layers}
        self._head_dim = layers[0].head_dim
        self.decode = DecodeBatch(req_to_token, len(layers), layers[0].kv_heads)
        self.pruner = Pruner(config, layers, pool.keys, pool.values, req_to_token, longest, ranks)
        if pool.keys.is_cuda:
            compile_kernels(config, self.pruner, self.decode, pool.keys, pool.values, queries, ranks)
            self.pruner.stages = Stages(cuda=True)
        self._window = Window(len(layers), config.longest_window)
        self._stream = stream
        self._last: list[tuple[Chunk, torch.Tensor | None]] = []

    @property
    def slot_bytes(self) -> int:
        """Of a slot of the KV pool, on all ranks."""
        return self.pool.slot_bytes * self.ranks.size

    def begin_prefill(self, chunks: list[Chunk], cache: LaproxCache) -> None:
        """Prepares a prefill whose batch holds the tokens of ``chunks`` in turn.

        Complete prompts enter the tree before they are computed: prompts of one batch see each other, and
        afterwards the rows would be written while the forward pass reads them.
        """
        # The last capture of a graph may have left a compressed batch behind.
        self.decode.forget()
        parts, token = [], 0
        for chunk in chunks:
            chunk.state.outcome = Outcome(chunk.plan, None, chunk.plan.length)
            chunk.state.computed = chunk.end == chunk.plan.end
            first = max(chunk.start, chunk.plan.end - self.config.longest_window)
            if chunk.plan.pruned and first < chunk.end:
                parts.append(
                    Part(chunk.state, slice(token + first - chunk.start, token + chunk.end - chunk.start))
                )
            token += chunk.end - chunk.start
        self._window.expect(parts)
        # Before any is published: what is in the tree may be evicted.
        self._last = [(chunk, cache.take(chunk.plan)) for chunk in chunks if chunk.last]
        for chunk, _ in self._last:
            cache.publish(chunk.req)

    def observe(self, layer_id: int, queries: torch.Tensor) -> None:
        """Takes the queries ``[tokens, Hq·D]`` of a prefill's batch in one layer, after RoPE.

        Args:
            layer_id: SGLang's number of the layer.
        """
        self._window.save(self.layers[layer_id].index, queries)

    def finish_prefill(self, cache: LaproxCache, reserve: int) -> bool:
        """Makes the views of the prompts that the forward pass, just launched, completes.

        Args:
            reserve: slots that must be left beside the views, to the requests that go on.

        Returns:
            Whether there are any: then rows are written behind the forward pass.
        """
        if self._window.empty:
            return False
        last, self._last = self._last, []
        chunks = [chunk for chunk, _ in last]
        # All slots first: whatever they held is packed in order, by the forward stream.
        opened = [cache.open_view(chunk.req, chunk.plan, taken, reserve) for chunk, taken in last]
        cache.back_up()
        with self._stream.behind():
            self._window.hand_over(self._head_dim)
            for chunk, room in zip(chunks, opened, strict=True):
                if isinstance(room, str):
                    chunk.state.settle(chunk.plan.whole(room))
                else:
                    self._make_view(chunk, room, cache)
        return any(isinstance(room, Opened) for room in opened)

    def shrink_view(self, req: Req, slots: int) -> View:
        """The view of a running request with fewer slots, as ``Pruner.shrink_view``."""
        view = view_of(req)
        assert view is not None
        with self._stream.behind():
            return self.pruner.shrink_view(view, req.kv.req_pool_idx, slots)

    def _make_view(self, chunk: Chunk, room: Opened, cache: LaproxCache) -> None:
        state, plan = chunk.state, chunk.plan
        assert state.queries is not None
        self._stream.keep(room.slots)
        view = self.pruner.make_view(
            plan, chunk.row_index, state.queries, room.slots, room.staged, state.options.return_kept
        )
        cache.exchange(chunk.req, view)
        state.settle(plan)
        self.report.pruned(chunk.req, plan, view, room.freed, room.staged)
