"""What a model is asked, and how well it answers over the cells that are kept of its prompt."""

from dataclasses import dataclass
from typing import NamedTuple

import torch

from benchmarks.quality.model import Model, Prefix, everything


@dataclass(frozen=True)
class Case:
    """
    Attributes:
        kind: which of its task's.
        prompt, answer: token ids.
        context: tokens of the prompt before the question; 0 where there is none.
        fact: tokens of the prompt that hold the answer; empty where that is nowhere.
        question: for a person.
    """

    kind: str
    prompt: list[int]
    answer: list[int]
    context: int = 0
    fact: range = range(0)
    question: str = ""


class Outcome(NamedTuple):
    """
    Attributes:
        exact: all tokens of the answer are the most likely ones, each given those before it: what greedy
            decoding would say.
        logprob: of the answer, mean over its tokens.
        kl: from the model with all KV to the model at hand, mean over the tokens that read kept cells.
        erased: share of the prompt's tokens that no head of any layer keeps.
    """

    exact: bool
    logprob: float
    kl: float
    erased: float


def outcomes(
    model: Model, prefix: Prefix, between: list[int], answer: list[int], kept: list[torch.Tensor]
) -> list[Outcome]:
    """How a prompt's answer fares with all KV, and with each choice of its cells.

    Args:
        between: tokens behind the prompt and before the answer, which read the kept cells as well; without
            any the answer's first token comes out of the prefill itself, exact whatever is kept.
        kept: bool ``[L, H, n]`` each.
    """
    choices = torch.cat([everything(model, prefix), *(cells[None].to(model.device) for cells in kept)])
    found, whole = [], None
    for cells, logprobs in zip(choices, model.follow(prefix, between + answer[:-1], choices), strict=True):
        steps = logprobs[len(between) :]
        whole = steps if whole is None else whole
        # Without anything between, the answer's first token read no kept cell.
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
