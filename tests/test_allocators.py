"""How a budget is spent: exactly, by the scores, and with the floor that was promised."""

import math
from itertools import pairwise

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

import laprox_kernels as kernels
from laprox_sglang.scorers.allocators import ALLOCATORS, Allocation, allocation, floor_cells, keep
from laprox_sglang.scorers.rank import compare_layers

INF = float("inf")
KINDS = ("continuous", "ties", "nan", "constant", "pinned")


@st.composite
def spendings(draw):
    """Scores, slots, protected cells of a head, all in fresh sizes."""
    layers, heads = draw(st.integers(1, 4)), draw(st.integers(1, 4))
    protected, rest = draw(st.integers(0, 5)), draw(st.integers(1, 30))
    slots = draw(st.integers(max(1, protected), protected + rest))
    kind = draw(st.sampled_from(KINDS))
    generator = torch.Generator().manual_seed(draw(st.integers(0, 2**40)))
    scores = torch.rand((layers, heads, protected + rest), generator=generator)
    # Heads of very different weight, which a floor is for.
    scores *= torch.rand((layers, heads, 1), generator=generator) ** 4
    if kind == "ties":
        scores = (scores * 6).floor()
    elif kind == "nan":
        scores[0] = math.nan
    elif kind == "constant":
        scores.zero_()
    elif kind == "pinned":
        # As CriticalKV's first part: no more than a head has of the budget.
        scores[..., protected : slots - (slots - protected) // 2] = INF
    scores[..., :protected] = INF
    return scores, slots, protected


floors = st.one_of(st.sampled_from([0.0, 0.2, 0.29, 0.5, 1.0]), st.floats(0, 1))


def rows_of(scores, kept, cu_cells):
    """Kept positions of each (layer, head)."""
    length, offsets = scores.shape[-1], cu_cells.tolist()
    rows = [(kept[a:b] - i * length).tolist() for i, (a, b) in enumerate(pairwise(offsets))]
    assert all(0 <= position < length for row in rows for position in row)
    return rows


def order(scores):
    """Indices from the best to the worst; of equal ones the first, NaN last."""
    flat = scores.flatten().tolist()
    return sorted(
        range(len(flat)), key=lambda i: (math.isnan(flat[i]), -flat[i] if flat[i] == flat[i] else 0, i)
    )


def brute_force(scores, slots, scope, floor):
    """Every head's floor first, then the best of the rest over the model or over each layer."""
    layers, heads, length = scores.shape
    kept = {(layer, head, i) for layer in range(layers) for head in range(heads)
            for i in order(scores[layer, head])[:floor]}  # fmt: skip
    groups = [range(layers)] if scope == "model" else [[layer] for layer in range(layers)]
    for group in groups:
        left = slots * heads * len(group) - floor * heads * len(group)
        for flat in order(scores[list(group)]):
            at = (group[flat // length // heads], flat // length % heads, flat % length)
            if left and at not in kept:
                kept.add(at)
                left -= 1
    return [sorted(i for a, b, i in kept if (a, b) == (layer, head))
            for layer in range(layers) for head in range(heads)]  # fmt: skip


@settings(max_examples=200, deadline=None)
@given(spendings(), st.sampled_from(["model", "layer"]), floors)
def test_exactly_the_best_within_the_scope_behind_the_floor(spending, scope, floor):
    scores, slots, protected = spending
    layers, heads, _ = scores.shape
    kept, cu_cells = keep(scores.clone(), slots, Allocation(scope, floor), protected)
    rows = rows_of(scores, kept, cu_cells)
    least = floor_cells(slots, protected, floor) if floor else 0
    assert sum(map(len, rows)) == slots * layers * heads
    assert min(map(len, rows)) >= max(least, protected)
    assert rows == brute_force(scores, slots, scope, least)
    if scope == "layer":
        assert {sum(map(len, rows[i : i + heads])) for i in range(0, len(rows), heads)} == {slots * heads}


@settings(max_examples=50, deadline=None)
@given(spendings())
def test_uniform_keeps_as_many_in_every_head(spending):
    scores, slots, protected = spending
    kept, cu_cells = keep(scores.clone(), slots, ALLOCATORS["uniform"], protected)
    rows = rows_of(scores, kept, cu_cells)
    assert rows == [sorted(order(row)[:slots]) for row in scores.flatten(0, 1)]


@settings(max_examples=50, deadline=None)
@given(spendings())
def test_the_papers_is_one_ranking_over_the_whole_model(spending):
    scores, slots, protected = spending
    expected = kernels.select(scores, slots * scores.shape[0] * scores.shape[1])
    for got, wanted in zip(
        keep(scores.clone(), slots, allocation("model"), protected), expected, strict=True
    ):
        assert torch.equal(got, wanted)


@pytest.mark.parametrize(
    ("scope", "floor", "compete"),
    [("model", 0.0, True), ("model", 0.99, True), ("model", 1.0, False), ("layer", 0.0, False)],
)
def test_where_layers_compete(scope, floor, compete):
    assert Allocation(scope, floor).layers_compete is compete


def shares(scores, sums):
    """What a layer's candidates are of their sum, in Python's floats; of nothing, nothing."""
    return [
        [[x / total if total else x for x in head] for head in layer]
        for layer, total in zip(scores.tolist(), sums.tolist(), strict=True)
    ]


@settings(max_examples=50, deadline=None)
@given(spendings(), st.floats(0, 0.99))
def test_layers_compete_by_shares_of_their_sums(spending, floor):
    scores, slots, protected = spending
    # Layers of very different size; one that has nothing, one that is not a number.
    scores *= torch.logspace(-6, 6, len(scores)).view(-1, 1, 1)
    candidates = scores[..., protected:]
    sums = candidates.masked_fill(candidates == INF, 0).sum((1, 2))
    compared = scores.clone()
    compare_layers(compared, sums, slice(protected, None))
    assert torch.equal(compared[..., :protected], scores[..., :protected]), "the protected stay +inf"
    for layer, total in enumerate(sums.tolist()):
        if math.isnan(total):
            assert bool(compared[layer, :, protected:].isnan().all())
    by_hand = torch.tensor(shares(candidates, sums))
    torch.testing.assert_close(compared[..., protected:], by_hand, equal_nan=True, rtol=1e-6, atol=0)
    kept, cu_cells = keep(compared.clone(), slots, Allocation("model", floor), protected)
    assert min(map(len, rows_of(scores, kept, cu_cells))) >= protected


@given(st.integers(0, 300), st.integers(0, 3000), floors)
def test_a_floor_is_a_share_of_what_is_not_protected(protected, rest, floor):
    least = floor_cells(protected + rest, protected, floor)
    assert protected <= least <= protected + rest
    assert abs(least - protected - floor * rest) < 1


def test_a_floor_does_not_fall_through_rounding():
    assert floor_cells(132, 32, 0.29) == 32 + 29
    assert floor_cells(132, 32, 1.0) == 132 and floor_cells(132, 32, 0.0) == 32


def test_allocators_by_name():
    assert allocation("model") == Allocation("model", 0.0)
    assert allocation("layer") == Allocation("layer", 0.2)
    assert allocation("layer", 0) == Allocation("layer", 0)
    assert allocation("model", 0.5) == Allocation("model", 0.5)
    for name, floor, said in [
        ("head", None, "model, layer, uniform"), ("uniform", 0.5, "nothing"), ("model", 1.1, "from 0 to 1"),
        ("model", -0.1, "from 0 to 1"), ("layer", math.nan, "from 0 to 1"), ("model", True, "from 0 to 1"),
    ]:  # fmt: skip
        with pytest.raises(ValueError, match=said):
            allocation(name, floor)
