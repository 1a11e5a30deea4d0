"""Our baselines against kvpress: the same scores, and the same cells kept, on the same model.

Its presses are asked layer by layer: of transformers 5 they cannot be hooked in, and need not be.
"""

from importlib import import_module, metadata
from itertools import pairwise
from types import ModuleType

import pytest
import torch
from transformers.modeling_utils import ALL_ATTENTION_FUNCTIONS

from captured import Captured, load_model
from laprox_sglang.scorers import SCORERS
from laprox_sglang.scorers.allocators import ALLOCATORS, Allocation, keep
from laprox_sglang.scorers.pooling import Pooling
from laprox_sglang.scorers.rank import compare_layers, rank
from laprox_tools.needle import Task

pytestmark = pytest.mark.full

VERSION = "0.5.5"
WINDOW, KERNEL = 32, 7
SHARES = [0.15, 0.3, 0.5]
# How far scores, as shares of their layer's sum, may be from kvpress's. At a cut two may be swapped that are
# no further from each other than twice that.
RELATIVE, ABSOLUTE = 1e-4, 1e-9


@pytest.fixture(scope="module")
def kvpress() -> ModuleType:
    try:
        found = metadata.version("kvpress")
        attentions = dict(ALL_ATTENTION_FUNCTIONS.items())
        module = import_module("kvpress")
        # It has wrapped every attention of this process, which is other tests' as well.
        for name, attention in attentions.items():
            ALL_ATTENTION_FUNCTIONS[name] = attention
    except (ImportError, metadata.PackageNotFoundError) as error:
        found, module = str(error), None
    if module is None or found != VERSION:
        pytest.fail(
            f"needs kvpress {VERSION} (found: {found}): pip install --no-deps kvpress=={VERSION} cachetools "
            "fire peft termcolor",
            pytrace=False,
        )
    return module


@pytest.fixture(scope="module")
def captured(seed: int) -> list[Captured]:
    model = load_model()
    return [Captured(model, Task(seed + n).batch(1, n)[0].prompt_ids()) for n in (300, 500)]


def presses(kvpress: ModuleType, dropped: float) -> dict:
    def snapkv():
        return kvpress.SnapKVPress(dropped, WINDOW, KERNEL)

    return {
        "snapkv": snapkv(),
        "keydiff": with_window(kvpress.KeyDiffPress(dropped)),
        "criticalkv": kvpress.CriticalKVPress(snapkv()),
    }


def with_window(press):
    """KeyDiff drops of its window what it likes; a view never does."""
    score = press.score

    def windowed(*given):
        scores = score(*given)
        scores[..., -WINDOW:] = 9
        return scores

    press.score = windowed
    return press


def arguments(prompt: Captured, layer: int) -> tuple:
    """What a press is given of a layer."""
    inputs = prompt.inputs[layer]
    module = prompt.model.model.layers[layer].self_attn
    return module, inputs["hidden_states"], prompt.keys[layer], prompt.values[layer], None, inputs


@torch.no_grad()
def ours(prompt: Captured, name: str, slots: int, allocation: Allocation) -> tuple[torch.Tensor, list[set]]:
    """Scores ``[L, H, n]``, the window's +inf, and kept positions of every (layer, head)."""
    heads, n = prompt.keys[0].shape[1:3]
    scores = torch.empty((len(prompt.keys), heads, n))
    sums = rank(prompt.prompts(WINDOW, 0, 0, slots), SCORERS[name], Pooling("average", KERNEL), scores)
    # Shares of a layer are compared here: presses scale their scores as they like.
    compare_layers(scores, sums, slice(n - WINDOW))
    kept, cu_cells = keep(scores.clone(), slots, allocation, WINDOW)
    return scores, [set((kept[a:b] % n).tolist()) for a, b in pairwise(cu_cells)]


def same(ours: set, theirs: set, scores: torch.Tensor) -> bool:
    """Whether the same is kept of these scores, but for cells that are all but level with the cut."""
    if len(ours) != len(theirs):
        return False
    swapped = scores[sorted(ours ^ theirs)]
    return not len(swapped) or bool(
        swapped.max() - swapped.min() <= 2 * (RELATIVE * swapped.max() + ABSOLUTE)
    )


@pytest.mark.parametrize("share", SHARES)
@pytest.mark.parametrize("name", ["snapkv", "keydiff", "criticalkv"])
def test_scores_and_kept_cells_are_those_of_kvpress(kvpress, captured, name, share, seed, figures):
    equal = []
    for prompt in captured:
        n = prompt.keys[0].shape[2]
        slots = int(share * n)
        # In the middle between two numbers of tokens: whole numbers of a float are a matter of luck.
        press = presses(kvpress, 1 - (slots + 0.5) / n)[name]
        scores, kept = ours(prompt, name, slots, ALLOCATORS["uniform"])
        for layer, of_layer in enumerate(scores):
            given = arguments(prompt, layer)
            theirs, (keys, _) = press.score(*given)[0], press.compress(*given)
            assert keys.shape[2] == slots
            picked = (keys[0][:, :, None] == prompt.keys[layer][0][:, None]).all(-1).nonzero()[:, 2]
            if name == "keydiff":
                # Ours is not negative.
                theirs = (1 + theirs).clamp_min(0)
            candidates, expected = of_layer[:, :-WINDOW], theirs[:, :-WINDOW]
            pinned = candidates.isinf(), expected > 1e30
            rest = ~(pinned[0] | pinned[1])
            shares = (whole[rest] / whole[rest].sum() for whole in (candidates, expected))
            torch.testing.assert_close(*shares, rtol=RELATIVE, atol=ABSOLUTE)
            for head, positions in enumerate(picked.view(-1, slots).tolist()):
                mine, first = kept[layer * len(of_layer) + head], [at[head] for at in pinned]
                if torch.equal(*first):
                    assert same(mine, set(positions), of_layer[head])
                else:
                    # By attention alone, which has a cut of its own; the rest goes by what that leaves.
                    attention = press.press.score(*given)[0, head]
                    assert same(*(set(at.nonzero()[:, 0].tolist()) for at in first), attention)
                equal.append(mine == set(positions))
    figures.append(f"{name} and kvpress at {share:.0%}: the same kept in {sum(equal)} of {len(equal)} heads")
    assert sum(equal) >= 0.9 * len(equal), "more than rounding"


@pytest.mark.parametrize("share", SHARES)
@pytest.mark.parametrize("name", ["snapkv", "keydiff"])
def test_the_allocator_by_layer_is_ada_kv(kvpress, captured, name, share, seed):
    """With as many cells of safeguard: kvpress counts the window in it, and we do not."""
    for prompt in captured:
        heads, n = prompt.keys[0].shape[1:3]
        slots = int(share * n)
        safe = WINDOW + int(0.2 * (slots - WINDOW))
        press = presses(kvpress, 1 - (slots + 0.5) / n)[name]
        ada = kvpress.AdaKVPress(press, alpha_safeguard=(safe + 0.5) / slots)
        scores, kept = ours(prompt, name, slots, ALLOCATORS["layer"])
        for layer, of_layer in enumerate(scores):
            module, *given = arguments(prompt, layer)
            ada.compress(module, *given)
            _, head, position = module.masked_key_indices
            dropped = torch.zeros((heads, n), dtype=torch.bool)
            dropped[head, position] = True
            theirs = {int(i) for i in (~dropped).flatten().nonzero()}
            mine = {h * n + i for h in range(heads) for i in kept[layer * heads + h]}
            assert len(mine) == slots * heads
            assert same(mine, theirs, of_layer.flatten())
