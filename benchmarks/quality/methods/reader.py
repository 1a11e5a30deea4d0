"""A Hugging Face model that reads a chosen part of a prompt's KV, another in every layer and head.

A prompt is computed once, whole. What follows it is then computed for many choices at once. Any model serves
whose attention goes through transformers' ``AttentionInterface`` with one full KV cache a layer.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from transformers import AttentionInterface, AutoModelForCausalLM

from benchmarks.quality.methods.variants import PHASE_WINDOW, foretold
from laprox_sglang.options.values import shown
from laprox_tools.plan.model_config import fault_of

# Queries that are saved of a prompt's end; no window is longer.
LONGEST_WINDOW = 64
# Pairs of query and key of one forward pass: bounds its attention and logits to some hundred MB.
PAIRS = 1 << 21


class BadModel(ValueError):
    """A model whose cells cannot be chosen here; the message is one line."""


@dataclass(frozen=True)
class Prefix:
    """A computed prompt.

    Attributes:
        ids: its n tokens.
        keys, values: ``[H, n, D]`` of every layer, keys after RoPE.
        queries: ``[Hq, ≤ 64, D]`` of every layer, the last ones, after RoPE.
        phases: the same, 24 of them, before other positions.
        logprobs: float32 ``[vocabulary]`` of the token behind it.
        kv_dtype: K and V are rounded to it, those of what follows too; None leaves them as they are.
    """

    ids: list[int]
    keys: list[torch.Tensor]
    values: list[torch.Tensor]
    queries: list[torch.Tensor]
    logprobs: torch.Tensor
    phases: dict[int, list[torch.Tensor]] = field(default_factory=dict)
    kv_dtype: torch.dtype | None = None


@dataclass
class Whole:
    """Attention of a prompt, or of what is appended to ``before``: causal, over everything. Saves its KV."""

    before: Prefix | None
    ends: Sequence[int] = ()
    kv_dtype: torch.dtype | None = None
    keys: list[torch.Tensor] = field(default_factory=list)
    values: list[torch.Tensor] = field(default_factory=list)
    queries: list[torch.Tensor] = field(default_factory=list)
    phases: dict[int, list[torch.Tensor]] = field(default_factory=dict)

    def attend(
        self, layer: int, q: torch.Tensor, k: torch.Tensor, v: torch.Tensor, scale: float
    ) -> torch.Tensor:
        last = q[0, :, -LONGEST_WINDOW:]
        for end in self.ends:
            self.phases.setdefault(end, []).append(q[0, :, end - PHASE_WINDOW : end])
        if self.before is not None:
            k = torch.cat([self.before.keys[layer][None], k], dim=2)
            v = torch.cat([self.before.values[layer][None], v], dim=2)
            last = torch.cat([self.before.queries[layer], last], dim=1)[:, -LONGEST_WINDOW:]
        self.keys.append(k[0])
        self.values.append(v[0])
        self.queries.append(last)
        length, total = q.shape[2], k.shape[2]
        # Causal from the upper left corner where they are as long as each other, which is quicker.
        seen = None if length == total else torch.ones(length, total, dtype=torch.bool, device=q.device).tril(
            total - length
        )  # fmt: skip
        return F.scaled_dot_product_attention(
            q, k, v, attn_mask=seen, is_causal=seen is None, scale=scale, enable_gqa=True
        )


@dataclass
class Chosen:
    """Attention of what follows ``prefix``: the cells of it that are kept, and causally each other.

    Attributes:
        kept: bool ``[M, L, H, n]``, one choice for every sequence of the batch, or ``[M, L, H, T, n]``, one
            for each of its queries.
        corrected: bool ``[M]``: by the moments of what is not kept; where all queries have the same choice.
    """

    prefix: Prefix
    kept: torch.Tensor
    corrected: torch.Tensor

    @property
    def kv_dtype(self) -> torch.dtype | None:
        return self.prefix.kv_dtype

    def attend(
        self, layer: int, q: torch.Tensor, k: torch.Tensor, v: torch.Tensor, scale: float
    ) -> torch.Tensor:
        heads, length = k.shape[1:3]
        n = len(self.prefix.ids)
        grouped = q.float().unflatten(1, (heads, -1)) * scale
        before = torch.einsum("mhgtd,hnd->mhgtn", grouped, self.prefix.keys[layer].float())
        kept = self.kept[:, layer]
        before.masked_fill_(~kept.view(*kept.shape[:2], 1, -1, n), float("-inf"))
        own = torch.einsum("mhgtd,mhsd->mhgts", grouped, k.float())
        future = torch.ones(length, length, dtype=torch.bool, device=q.device).triu(1)
        own.masked_fill_(future, float("-inf"))
        parts = [before, own]
        if self.corrected.any():
            dropped = ~kept & self.corrected[:, None, None]
            layer_kv = self.prefix.keys[layer], self.prefix.values[layer]
            logit, value = foretold(*layer_kv, dropped, grouped)
            parts.append(logit)
        weights = torch.cat(parts, dim=-1).softmax(dim=-1)
        out = torch.einsum("mhgtn,hnd->mhgtd", weights[..., :n], self.prefix.values[layer].float())
        out += torch.einsum("mhgts,mhsd->mhgtd", weights[..., n : n + length], v.float())
        if self.corrected.any():
            out += weights[..., -1:] * value
        return out.flatten(1, 2).to(q.dtype)


def attend(
    module: torch.nn.Module,
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    attention_mask: torch.Tensor | None,
    scaling: float,
    chosen: Whole | Chosen,
    **ignored: Any,
) -> tuple[torch.Tensor, None]:
    """What transformers calls in every layer."""
    layer = module.layer_idx
    assert isinstance(layer, int)
    if chosen.kv_dtype is not None:
        # As a server has it that attends to what it has written.
        key, value = (x.to(chosen.kv_dtype).to(x.dtype) for x in (key, value))
    return chosen.attend(layer, query, key, value, scaling).transpose(1, 2).contiguous(), None


AttentionInterface.register("laprox_quality", attend)


class Model:
    """The model on ``device``; not for several threads at a time.

    Attributes:
        layers, heads: L and H.
        scale: factor of the attention logits.
        output: W_O of every query head, float32 ``[Hq, D, hidden]``, by layer.
        gram: ``W_O W_Oᵀ`` of every query head, float32 ``[Hq, D, D]``, by layer.
    """

    def __init__(self, path: str | Path, device: str = "cpu", dtype: torch.dtype = torch.float32) -> None:
        """
        Raises:
            BadModel: transformers does not load it, or its layers are not what is read here.
        """
        self.device = device
        try:
            model = self.load(path, dtype)
        except Exception as error:
            # Whatever transformers and the readers below it make of other people's files.
            raise BadModel(f"{path} is not loaded: {type(error).__name__}: {shown(error)}") from error
        self._model = model.eval().to(device)
        config = self._model.config.get_text_config()
        attentions = [module for module in self._model.modules() if hasattr(module, "o_proj")]
        if (fault := fault_of(config.to_dict()) or odd(config, attentions)) is not None:
            raise BadModel(
                f"{path} is a {type(self._model).__name__} with {fault}: give one as Llama is built"
            )
        self.layers, self.heads = config.num_hidden_layers, config.num_key_value_heads
        self.scale = attentions[0].scaling
        self.output = [
            module.o_proj.weight.detach().float().T.unflatten(0, (config.num_attention_heads, -1))
            for module in attentions
        ]
        self.gram = [weights @ weights.mT for weights in self.output]

    def load(self, path: str | Path, dtype: torch.dtype) -> Any:
        return AutoModelForCausalLM.from_pretrained(path, dtype=dtype, attn_implementation="laprox_quality")

    def prefill(
        self,
        ids: list[int],
        before: Prefix | None = None,
        phases: Sequence[int] = (),
        kv_dtype: torch.dtype | None = None,
    ) -> Prefix:
        """Computes a prompt, or ``ids`` behind one that is computed, over all of its KV.

        Args:
            phases: positions of ``ids`` before which queries are saved as well.
            kv_dtype: as of ``Prefix``.
        """
        attention = Whole(before, phases, kv_dtype)
        start = len(before.ids) if before is not None else 0
        logprobs = self._forward(torch.tensor([ids]), start, attention, last=1)[0, 0]
        ids = [*(before.ids if before is not None else []), *ids]
        saved = attention.keys, attention.values, attention.queries
        return Prefix(ids, *saved, logprobs, attention.phases, kv_dtype)

    def follow(
        self, prefix: Prefix, ids: list[int], kept: torch.Tensor, corrected: Sequence[bool] = ()
    ) -> Iterator[torch.Tensor]:
        """Computes ``ids`` behind a prompt for every choice of its cells.

        Args:
            kept: bool ``[M, L, H, n]``, or ``[M, L, H, T, n]`` with the choice that each of ``ids`` reads.
            corrected: of M, whether a choice has the moments of what it drops; none has by default.

        Yields:
            Log-probabilities float32 ``[1 + len(ids), vocabulary]`` of the token behind the prompt, which is
            the same for all choices, and of those behind each of ``ids``.
        """
        if not ids:
            yield from (prefix.logprobs[None] for _ in kept)
            return
        tokens, rows = torch.tensor([ids]), max(1, PAIRS // len(ids) // len(prefix.ids))
        moments = torch.tensor(corrected or [False] * len(kept), device=self.device)
        for part, told in zip(kept.split(rows), moments.split(rows), strict=True):
            batch, attention = tokens.expand(len(part), -1), Chosen(prefix, part, told)
            for logprobs in self._forward(batch, len(prefix.ids), attention, last=len(ids)):
                yield torch.cat([prefix.logprobs[None], logprobs])

    @torch.inference_mode()
    def _forward(self, ids: torch.Tensor, start: int, attention: Whole | Chosen, last: int) -> torch.Tensor:
        positions, seen = self._placed(ids, start)
        logits = self._model(
            ids.to(self.device),
            position_ids=positions.to(self.device),
            use_cache=False,
            logits_to_keep=last,
            chosen=attention,
            **seen,
        ).logits
        logprobs: torch.Tensor = logits.float().log_softmax(-1)
        return logprobs

    def _placed(self, ids: torch.Tensor, start: int) -> tuple[torch.Tensor, dict[str, torch.Tensor]]:
        """Positions of ``ids`` behind ``start`` tokens, and what the model sees beside them."""
        return torch.arange(start, start + ids.shape[1])[None], {}


def odd(config: Any, attentions: list[Any]) -> str | None:
    """What a model has that is not read here; None if it is read."""
    if len(attentions) != config.num_hidden_layers:
        return f"{len(attentions)} layers of attention with an o_proj among {config.num_hidden_layers}"
    if not hasattr(config, "num_key_value_heads"):
        return "no num_key_value_heads"
    if not all(hasattr(module, "scaling") and hasattr(module, "layer_idx") for module in attentions):
        return "attention that does not say its scaling"
    return None


def everything(model: Model, prefix: Prefix) -> torch.Tensor:
    """The choice of all cells: bool ``[1, L, H, n]``."""
    return torch.ones(1, model.layers, model.heads, len(prefix.ids), dtype=torch.bool, device=model.device)
