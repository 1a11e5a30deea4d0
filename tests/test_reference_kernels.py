"""The torch reference against the method written out in plain loops over Python floats."""

import math
import random

import pytest
import torch

from laprox_kernels import Rows
from laprox_kernels.reference.decode import decode
from laprox_kernels.reference.pack import pack
from laprox_kernels.reference.score import score
from laprox_kernels.reference.select import select
from laprox_sglang.scorers.rank import compare_layers

INF = float("inf")


def softmax(logits: list[float]) -> list[float]:
    top = max(logits)
    powers = [math.exp(x - top) for x in logits]
    return [x / sum(powers) for x in powers]


def dot(a: list[float], b: list[float]) -> float:
    return sum(x * y for x, y in zip(a, b, strict=True))


class ScoreCase:
    """One request in one layer of a pool of two, with an explicit W_O of every query head."""

    def __init__(
        self,
        seed,
        window=3,
        heads=2,
        group=2,
        n=23,
        start=0,
        sinks=0,
        pooling=("average", 3),
        dim=4,
        hidden=5,
    ):
        rng = torch.Generator().manual_seed(seed)
        self.__dict__.update(window=window, heads=heads, group=group, n=n, start=start, sinks=sinks)
        self.__dict__.update(pooling=pooling, dim=dim, scale=0.7)
        queries = torch.randn((2, window, heads * group, dim), generator=rng)
        self.pool = torch.randn((2, n + 9, 2, heads, dim), generator=rng)
        # Another layer, of another size, lies before the one that is looked at.
        self.all_queries, self.queries = queries, queries[1]
        self.keys, self.values = self.pool[0, :, 1], self.pool[1, :, 1]
        self.row = torch.randperm(n + 8, generator=rng)[:n] + 1
        self.projection = torch.randn((heads * group, dim, hidden), generator=rng)

    def run(self) -> tuple[list[list[float]], float]:
        """Scores of the second layer, and their sum."""
        out = torch.full((2, self.heads, self.n - self.start), 99.0)
        gram = torch.stack([100 * self.projection.flip(0), self.projection])
        scale = torch.tensor([2.0, self.scale])
        sums = score(self.all_queries, *self.pool, self.row, self.start, gram @ gram.mT, scale,
                     self.sinks, self.pooling, out)  # fmt: skip
        return out[1].tolist(), float(sums[1])

    def brute_force(self) -> tuple[list[list[float]], float]:
        k, v = self.keys[self.row].tolist(), self.values[self.row].tolist()
        q, w_o = self.queries.tolist(), self.projection.tolist()
        raw = [[0.0] * self.n for _ in range(self.heads)]
        for head in range(self.heads):
            for query_head in range(head * self.group, (head + 1) * self.group):
                columns = [[0.0] * self.n for _ in range(self.window)]
                for w in range(self.window):
                    seen = self.n - self.window + w + 1
                    logits = [self.scale * dot(q[w][query_head], k[i][head]) for i in range(seen)]
                    columns[w][:seen] = softmax(logits)
                for i in range(self.n):
                    attention = math.sqrt(sum(columns[w][i] ** 2 for w in range(self.window)))
                    projected = [dot(v[i][head], column) for column in zip(*w_o[query_head], strict=True)]
                    raw[head][i] += attention * math.sqrt(dot(projected, projected)) / self.group
        first, last = self.start + self.sinks, self.n - self.window
        kind, width = self.pooling
        reach = width // 2
        places = range(-reach, reach + 1)
        weights = {d: 1 - (d / (reach + 1)) ** 2 if kind == "parabola" else 1 for d in places}
        pooled = [
            [
                sum(w * raw[head][i + d] for d, w in weights.items() if first <= i + d < last)
                / sum(weights.values())
                for i in range(first, last)
            ]
            for head in range(self.heads)
        ]
        total = sum(map(sum, pooled))
        protected = [INF] * self.sinks, [INF] * self.window
        return [[*protected[0], *line, *protected[1]] for line in pooled], total


@pytest.mark.parametrize("width", [1, 3, 7, 41])
@pytest.mark.parametrize("kind", ["average", "parabola"])
@pytest.mark.parametrize(
    "shape",
    [{}, {"start": 5}, {"sinks": 2}, {"start": 4, "sinks": 2}, {"start": 19}, {"window": 1},
     {"window": 8, "heads": 1, "group": 4}, {"heads": 3, "group": 1}, {"heads": 1, "group": 3, "start": 7}],
    ids=str,
)  # fmt: skip
def test_score_equals_the_method_written_out(shape, kind, width, seed):
    case = ScoreCase(seed, pooling=(kind, width), **shape)
    (scores, total), (expected_scores, expected_total) = case.run(), case.brute_force()
    for got, expected in zip(scores, expected_scores, strict=True):
        assert got == pytest.approx(expected, rel=2e-4, abs=1e-7)
    assert total == pytest.approx(expected_total, rel=2e-4)


@pytest.mark.parametrize(("start", "sinks"), [(0, 0), (0, 4), (3, 1), (10, 0)])
def test_candidates_come_to_the_sum_and_the_protected_stand_above_all(start, sinks, seed):
    case = ScoreCase(seed, start=start, sinks=sinks, n=60, pooling=("average", 7))
    listed, total = case.run()
    scores = torch.tensor(listed)
    private = case.n - start
    protected = torch.zeros(private, dtype=torch.bool)
    protected[:sinks] = protected[private - case.window :] = True
    assert bool((scores[:, protected] == INF).all())
    candidates = scores[:, ~protected]
    assert bool((candidates >= 0).all()) and bool(candidates.isfinite().all())
    assert float(candidates.sum()) == pytest.approx(total, rel=1e-5)


def test_values_of_zero_score_zero(seed):
    case = ScoreCase(seed)
    case.values.zero_()
    scores, total = case.run()
    assert bool((torch.tensor(scores)[:, : case.n - case.window] == 0).all()) and total == 0


def test_a_form_that_rounding_pushed_below_zero_counts_as_zero(seed):
    case = ScoreCase(seed)
    out = torch.full((2, case.heads, case.n), 99.0)
    gram = -1e-9 * torch.eye(case.dim).expand(2, case.heads * case.group, -1, -1)
    score(case.all_queries, *case.pool, case.row, 0, gram, torch.full((2,), case.scale), 0, case.pooling, out)
    assert bool((out[..., : case.n - case.window] == 0).all())


def test_score_does_not_see_other_slots(seed):
    case = ScoreCase(seed, start=4)
    expected = case.run()
    others = torch.ones(len(case.keys), dtype=torch.bool)
    others[case.row] = False
    case.keys[others], case.values[others] = math.nan, math.nan
    assert case.run() == expected


def brute_force_select(scores: list[list[list[float]]], k: int) -> tuple[list[int], list[int]]:
    flat = [x for layer in scores for head in layer for x in head]
    # The best first; equal ones by index; what is not a number last.
    order = sorted(
        range(len(flat)), key=lambda i: (math.isnan(flat[i]), -flat[i] if flat[i] == flat[i] else 0, i)
    )
    kept = sorted(order[:k])
    length = len(scores[0][0])
    cells = len(scores) * len(scores[0])
    counts = [sum(i // length == cell for i in kept) for cell in range(cells)]
    return kept, [sum(counts[:cell]) for cell in range(cells + 1)]


@pytest.mark.parametrize("kind", ["continuous", "ties", "nan", "constant", "protected"])
def test_select_is_one_top_k_over_the_whole_model(kind, seed):
    rng = random.Random(seed)
    layers, heads, length = rng.randint(1, 4), rng.randint(1, 3), rng.randint(1, 40)
    total = layers * heads * length
    scores = torch.tensor([rng.random() for _ in range(total)]).view(layers, heads, length)
    if kind == "ties":
        scores = (scores * 4).floor()
    elif kind == "nan":
        scores = torch.where(scores < 0.4, math.nan, scores)
    elif kind == "constant":
        scores = torch.zeros_like(scores)
    elif kind == "protected":
        scores[..., -3:] = INF
    for k in {1, total, *(rng.randint(1, total) for _ in range(8))}:
        kept, cu_cells = select(scores.clone(), k)
        assert (kept.tolist(), cu_cells.tolist()) == brute_force_select(scores.tolist(), k)
        assert kept.dtype == cu_cells.dtype == torch.int64


def test_score_and_select_equal_flatten_normalise_top_k(seed):
    """Algorithm 2 on top of Algorithm 1, over layers of very different size."""
    cases = [ScoreCase(seed + i, n=30, pooling=("average", 7), sinks=2) for i in range(3)]
    cases[1].projection *= 1000
    scores, sums = zip(*(case.run() for case in cases), strict=True)
    got = torch.tensor(scores)
    compare_layers(got, torch.tensor(sums), slice(2, 30 - cases[0].window))
    expected = [
        [[x / total for x in line] for line in lines]
        for lines, total in (case.brute_force() for case in cases)
    ]
    # Float noise may swap neighbours that are all but equal: skip a cut between such.
    ranked = sorted((x for layer in expected for head in layer for x in head), reverse=True)
    cuts = [(k, ranked[k - 1], ranked[k]) for k in range(30, 150)]
    clear = [k for k, last, after in cuts if last == INF or last - after > 1e-5 * after]
    assert len(clear) > 60
    for k in clear:
        assert select(got, k)[0].tolist() == brute_force_select(expected, k)[0]


@pytest.mark.parametrize("share", [0.1, 0.5, 0.9, 1.0])
@pytest.mark.parametrize("staged", [False, True])
def test_pack_moves_every_kept_cell_and_touches_nothing_else(staged, share, seed):
    rng = random.Random(seed)
    layers, heads, dim, length = rng.randint(1, 3), rng.randint(1, 3), 2, rng.randint(4, 30)
    cells = layers * heads
    m = max(1, int(share * length))
    keys = torch.arange(90 * cells * dim, dtype=torch.float32).view(90, layers, heads, dim)
    values = -keys
    before = keys.clone()
    slots = rng.sample(range(1, 90), length)
    view = rng.sample(slots if staged else sorted({*range(1, 90)} - {*slots}), m)
    kept = sorted(rng.sample(range(cells * length), m * cells))
    positions = torch.zeros(len(kept), dtype=torch.int32)
    pack(keys, values, torch.tensor(slots), torch.tensor(kept), torch.tensor(view), staged, positions)
    assert positions.tolist() == [flat % length for flat in kept]
    for i, flat in enumerate(kept):
        layer, head, position = flat // length // heads, flat // length % heads, flat % length
        place = keys[view[i // cells]].view(cells, dim)[i % cells]
        assert place.tolist() == before[slots[position], layer, head].tolist()
    untouched = [slot for slot in range(90) if slot not in view]
    assert torch.equal(keys[untouched], before[untouched])
    assert torch.equal(values, -keys)


class DecodeCase:
    """A batch over a random pool; each row is a set of dense slots and some segments of ragged heads."""

    def __init__(self, seed, group, segments, rows=4, layers=2, heads=2, dim=4):
        rng = random.Random(seed)
        self.layers, self.heads, self.group, self.cells = layers, heads, group, layers * heads
        torch.manual_seed(seed)
        self.keys, self.values = torch.randn((2, 400, layers, heads, dim))
        self.queries = torch.randn((rows, heads * group, dim))
        free = rng.sample(range(1, 400), 399)
        slots, dense, starts, cu_cells = [], [], [], []
        for row in range(rows):
            # The last row has no segment; a row without dense slots has a cell in every head.
            count = rng.randint(0, segments) if 0 < row < rows - 1 else segments * (row == 0)
            dense.append(rng.choice([0, 1, 9]) if count else rng.randint(1, 9))
            line = [free.pop() for _ in range(dense[-1])]
            starts.append([])
            cu_cells.append([])
            for _ in range(segments):
                m = rng.randint(1, 4) if len(starts[-1]) < count else 0
                starts[-1].append(len(line))
                line += [free.pop() for _ in range(m)]
                cu_cells[-1].append(self.ragged(rng, m * self.cells, at_least=int(dense[-1] == 0)))
            slots.append(line)
        width = max(map(len, slots))
        self.slots = [line + [0] * (width - len(line)) for line in slots]
        self.dense, self.starts, self.cu_cells = dense, starts, cu_cells

    def ragged(self, rng, total, at_least):
        """Offsets of heads that share ``total`` cells unevenly; some get one, or none where they may."""
        counts = [at_least] * self.cells if total else [0] * self.cells
        weights = [rng.choice([0, 1, 20]) for _ in range(self.cells - 1)] + [1]
        for cell in rng.choices(range(self.cells), weights, k=total - sum(counts)):
            counts[cell] += 1
        return [sum(counts[:i]) for i in range(self.cells + 1)]

    def rows(self) -> Rows:
        slots, *lengths = map(torch.tensor, (self.slots, self.dense, self.starts, self.cu_cells))
        return Rows(slots.int(), *lengths)

    def dense_attention(self, layer: int) -> torch.Tensor:
        """Attention over ALL cells of the pool with a mask of those that each row may see."""
        out = torch.zeros_like(self.queries, dtype=torch.float64)
        k, v = (x.double().flatten(0, 2) for x in (self.keys, self.values))
        for row in range(len(out)):
            for head in range(self.heads):
                cell = layer * self.heads + head
                mask = torch.full((len(k),), -INF, dtype=torch.float64)
                for slot in self.slots[row][: self.dense[row]]:
                    mask[slot * self.cells + cell] = 0
                for start, cu in zip(self.starts[row], self.cu_cells[row], strict=True):
                    for i in range(cu[cell], cu[cell + 1]):
                        mask[self.slots[row][start + i // self.cells] * self.cells + i % self.cells] = 0
                for g in range(head * self.group, (head + 1) * self.group):
                    out[row, g] = (k @ self.queries[row, g].double() * 0.6 + mask).softmax(0) @ v
        return out


@pytest.mark.parametrize("group", [1, 2, 3, 4])
@pytest.mark.parametrize("segments", [1, 2, 3])
@pytest.mark.parametrize("variant", range(4))
def test_decode_equals_dense_attention_with_a_mask(group, segments, variant, seed):
    case = DecodeCase(seed + variant, group, segments)
    for layer in range(case.layers):
        got = decode(case.queries, case.keys, case.values, layer, case.rows(), 0.6)
        torch.testing.assert_close(got.double(), case.dense_attention(layer), atol=1e-5, rtol=1e-4)


def test_decode_does_not_see_other_slots(seed):
    """Slot 0 among them, where padding is written to: rows that are shorter than the longest name it."""
    case = DecodeCase(seed, group=2, segments=2)
    expected = [decode(case.queries, case.keys, case.values, i, case.rows(), 0.6) for i in range(case.layers)]
    others = sorted(set(range(len(case.keys))) - {slot for line in case.slots for slot in line if slot})
    case.keys[others] = case.values[others] = math.nan
    for layer, before in enumerate(expected):
        after = decode(case.queries, case.keys, case.values, layer, case.rows(), 0.6)
        assert torch.equal(after, before)


@pytest.mark.parametrize("dense", [0, 3])
def test_decode_with_heads_of_one_cell_and_of_none(dense, seed):
    case = DecodeCase(seed, group=2, segments=1, rows=1)
    case.dense, case.slots, case.starts = [dense], [list(range(11, 11 + dense + 2))], [[dense]]
    # With dense slots two heads are left without a single packed cell.
    case.cu_cells = [[[0, 1, 2, 3, 8] if dense == 0 else [0, 0, 7, 7, 8]]]
    for layer in range(case.layers):
        got = decode(case.queries, case.keys, case.values, layer, case.rows(), 0.6)
        torch.testing.assert_close(got.double(), case.dense_attention(layer), atol=1e-5, rtol=1e-4)
