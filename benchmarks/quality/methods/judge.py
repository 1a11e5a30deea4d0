"""How well a model answers over the cells that are kept of its prompt."""

from collections.abc import Mapping, Sequence

import torch

from benchmarks.quality.methods.choice import Chooser, allocator
from benchmarks.quality.methods.reader import Model, Prefix, everything
from benchmarks.quality.methods.variants import Variant
from benchmarks.quality.record.documents import Outcome, Reading, all_kv
from laprox_sglang.options.server import Config
from laprox_sglang.options.values import slots_of_share


def outcomes(
    model: Model,
    prefix: Prefix,
    between: list[int],
    answer: list[int],
    kept: Sequence[torch.Tensor],
    corrected: Sequence[bool] = (),
) -> list[Outcome]:
    """How a prompt's answer fares with all KV, and with each choice of its cells.

    Args:
        between: tokens behind the prompt and before the answer, which read the kept cells as well; without
            any the answer's first token comes out of the prefill itself, exact whatever is kept.
        kept: bool ``[L, H, n]`` each.
        corrected: as of ``Model.follow``.
    """
    choices = torch.cat([everything(model, prefix), *(cells[None].to(model.device) for cells in kept)])
    found, whole = [], None
    read = model.follow(prefix, between + answer[:-1], choices, [False, *corrected] if corrected else ())
    for cells, logprobs in zip(choices, read, strict=True):
        steps = logprobs[len(between) :]
        whole = steps if whole is None else whole
        found.append(outcome(steps, whole, answer, 0 if between else 1, cells))
    return found


def outcome(
    steps: torch.Tensor, whole: torch.Tensor, answer: list[int], read_from: int, cells: torch.Tensor
) -> Outcome:
    """
    Args:
        steps, whole: log-probabilities ``[len(answer), vocabulary]``, with kept cells and with all.
        read_from: first step that read kept cells.
        cells: the kept ones, bool ``[L, H, n]``.
    """
    wanted = torch.tensor(answer, device=steps.device)
    kl = (whole.exp() * (whole - steps)).sum(dim=-1)[read_from:]
    return Outcome(
        bool((steps.argmax(dim=-1) == wanted).all()),
        steps.gather(1, wanted[:, None]).mean().item(),
        kl.mean().item() if len(kl) else 0.0,
        1 - cells.flatten(0, 1).any(dim=0).float().mean().item(),
    )


def simulate(
    model: Model,
    prefix: Prefix,
    between: list[int],
    answer: list[int],
    turn: str,
    methods: Mapping[str, Config | Variant],
    shares: Sequence[float],
) -> dict[Reading, Outcome]:
    """How the answer fares with all KV, and by every method that keeps each share; see ``outcomes``."""
    chooser = Chooser(model, prefix)
    cells = {
        Reading(turn, name, allocator(config), share): chooser.cells(
            config, slots_of_share(share, len(prefix.ids))
        )
        for name, config in methods.items()
        for share in shares
    }
    corrected = [
        isinstance(config, Variant) and config.moments for config in methods.values() for _ in shares
    ]
    whole, *others = outcomes(model, prefix, between, answer, list(cells.values()), corrected)
    return {all_kv(turn): whole} | dict(zip(cells, others, strict=True))
