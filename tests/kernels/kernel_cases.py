"""Inputs and float64 oracles for the kernel tests, written without the code they check."""

from itertools import product
from math import inf, nan

import torch

from laprox_kernels import Rows

GPU = torch.cuda.is_available()
DEVICE = "cuda" if GPU else "cpu"
# The interpreter's bfloat16 product is wrong; a GPU's float32 is not served.
DTYPES = [torch.bfloat16, torch.float16] if GPU else [torch.float32, torch.float16]
FP8 = torch.float8_e4m3fn
# Of a pool; over fp8 the output has the queries' bfloat16.
POOLS = [*DTYPES, FP8]
TOLERANCE = {torch.bfloat16: 1e-2, torch.float16: 2e-3, torch.float32: 1e-5, FP8: 4e-3}
# An axis for ``paired``, by which a case has two dtypes in the interpreter.
TURNS = range(1 if GPU else 2)


def paired(*axes):
    """Every case of these axes with each dtype of a pool; in the interpreter with one of them in turn."""
    cases = list(product(*axes))
    if GPU:
        return [(*case, dtype) for case in cases for dtype in POOLS]
    return [(*case, POOLS[i % len(POOLS)]) for i, case in enumerate(cases)]


def queries_dtype(pool):
    return torch.bfloat16 if pool == FP8 else pool


def error(out, expected):
    """‖out − expected‖ / ‖expected‖; NaN, which never passes, where ``out`` holds one."""
    out, expected = out.double(), expected.double()
    return float((out - expected).norm() / expected.norm())


def randint(low, high):
    """A number from low to high, both included."""
    return int(torch.randint(low, high + 1, ()))


def random_pool(slots, layers, heads, dim, dtype):
    drawn = torch.float32 if dtype == FP8 else dtype
    return tuple(
        torch.randn(slots, layers, heads, dim, device=DEVICE, dtype=drawn).to(dtype) for _ in range(2)
    )


def random_bits(slots, layers, heads, dim, dtype):
    """A pool of any content, NaN and infinities of all kinds among it."""
    shape = slots, layers, heads, dim * dtype.itemsize
    return tuple(torch.randint(0, 256, shape, dtype=torch.uint8, device=DEVICE).view(dtype) for _ in range(2))


def bits(pool):
    """The same memory as bytes, which compare as they are."""
    return pool.view(torch.uint8)


def segment_counts(kind, cells, slots):
    """Kept cells of each (layer, head) of a segment of ``slots`` slots."""
    total = cells * slots
    if kind == "even":
        return torch.full((cells,), slots)
    if kind == "one head":
        counts = torch.zeros(cells, dtype=torch.int64)
        counts[randint(0, cells - 1)] = total
        return counts
    if kind == "one cell":
        counts = torch.ones(cells, dtype=torch.int64)
        counts[randint(0, cells - 1)] += total - cells
        return counts
    assert kind == "ragged"
    weights = torch.rand(cells) ** 2
    weights[torch.rand(cells) < 0.2] = 0
    weights[randint(0, cells - 1)] += 0.1
    return torch.bincount(torch.multinomial(weights, total, replacement=True), minlength=cells)


def random_rows(specs, pool_slots, cells):
    """Rows from one list per row: its dense slots, then a (kind, slots) pair per segment."""
    batch, most = len(specs), max(len(spec) - 1 for spec in specs)
    width = max(spec[0] + sum(slots for _, slots in spec[1:]) for spec in specs) + 3
    slots = torch.full((batch, width), 2**31 - 1, dtype=torch.int32)
    free = torch.randperm(pool_slots)
    dense = torch.zeros(batch, dtype=torch.int64)
    start = torch.zeros(batch, most, dtype=torch.int64)
    cu = torch.zeros(batch, most, cells + 1, dtype=torch.int64)
    for row, (count, *segments) in enumerate(specs):
        dense[row] = count
        used = count + sum(size for _, size in segments)
        slots[row, :used], free = free[:used], free[used:]
        at = count
        for index, (kind, size) in enumerate(segments):
            start[row, index] = at
            cu[row, index, 1:] = segment_counts(kind, cells, size).cumsum(0)
            at += size
    return Rows(slots.to(DEVICE), dense.to(DEVICE), start.to(DEVICE), cu.to(DEVICE)), free.to(DEVICE)


def row_cells(rows, row, layer, head, layers, heads):
    """Flat cells ``[n]`` of the pool that a row reads, one part after another."""
    cells = layers * heads
    cell = layer * heads + head
    slots = rows.slots[row].long()
    parts = [slots[: int(rows.dense[row])] * cells + cell]
    for segment in range(rows.cu_cells.shape[1]):
        first, last = rows.cu_cells[row, segment, cell : cell + 2].tolist()
        packed = torch.arange(first, last, device=rows.slots.device)
        slot = slots[int(rows.segment_start[row, segment]) + packed // cells]
        parts.append(slot * cells + packed % cells)
    return torch.cat(parts)


def attend(queries, keys, values, scale):
    """Attention ``[G, D]`` in float64 of ``[G, D]`` over ``[n, D]``."""
    return (queries.double() @ keys.double().T * scale).softmax(dim=-1) @ values.double()


def decode_oracle(queries, keys, values, layer, rows, scale):
    batch, q_heads, dim = queries.shape
    layers, heads = keys.shape[1:3]
    group = q_heads // heads
    out = torch.zeros(batch, q_heads, dim, dtype=torch.float64, device=queries.device)
    for row in range(batch):
        for head in range(heads):
            at = row_cells(rows, row, layer, head, layers, heads)
            k, v = keys.view(-1, dim)[at], values.view(-1, dim)[at]
            members = slice(head * group, (head + 1) * group)
            out[row, members] = attend(queries[row, members], k, v, scale)
    return out


KINDS = ["random", "like LaProx", "ties", "all equal", "signs and zeros", "special", "subnormal"]


def fill(kind, shape):
    """Scores of one of the ``KINDS``."""
    scores = torch.rand(shape, device=DEVICE)
    if kind == "like LaProx":
        scores = torch.randn(shape, device=DEVICE).mul(3).exp() / 1e7
        scores[..., -3:] = inf
    elif kind == "ties":
        scores = torch.randint(0, 3, shape, device=DEVICE).float()
    elif kind == "all equal":
        scores = torch.zeros(shape, device=DEVICE)
    elif kind == "signs and zeros":
        scores = torch.randint(-2, 3, shape, device=DEVICE).float()
        scores = torch.where(torch.rand(shape, device=DEVICE) < 0.3, -0.0, scores)
    elif kind == "special":
        values = torch.tensor([inf, -inf, nan, -nan, 1e-45, -1e-45, 3e-39, 0.0, -0.0, 3.4e38])
        scores = values.to(DEVICE)[torch.randint(0, len(values), shape, device=DEVICE)]
    elif kind == "subnormal":
        scores = torch.randint(0, 1000, shape, device=DEVICE, dtype=torch.int32).view(torch.float32)
    return scores


def select_oracle(scores, k):
    """The K highest, of equal ones the first, NaN as -inf: by one sort of (score, index) pairs."""
    flat = scores.flatten().double().nan_to_num(nan=float("-inf"), posinf=float("inf"), neginf=float("-inf"))
    order = flat.neg().sort(stable=True).indices
    kept = order[:k].sort().values
    layers, heads, length = scores.shape
    bounds = torch.arange(layers * heads + 1, device=scores.device) * length
    return kept, torch.searchsorted(kept, bounds)


def score_oracle(queries, keys, values, row, start, output, scale, sinks, pooling):
    """LaProx by its definition, in float64, from W_O itself: ``output`` is ``[L, Hq, D, hidden]``."""
    layers = []
    for layer in range(len(queries)):
        given = queries[layer], keys[:, layer], values[:, layer], row, start, output[layer]
        layers.append(score_layer_oracle(*given, scale[layer], sinks, pooling))
    return torch.stack(layers)


def score_layer_oracle(queries, keys, values, row, start, output, scale, sinks, pooling):
    """``score_oracle`` of one layer: every argument without its L."""
    window, q_heads, _ = queries.shape
    heads, n = keys.shape[1], len(row)
    group, count = q_heads // heads, n - start - window - sinks
    raw = torch.zeros(heads, count, dtype=torch.float64, device=row.device)
    candidates = slice(start + sinks, start + sinks + count)
    position = torch.arange(n, device=row.device)
    for head in range(heads):
        k, v = keys[row, head].double(), values[row[candidates], head].double()
        for member in range(head * group, (head + 1) * group):
            logits = queries[:, member].double() @ k.T * float(scale)
            logits[position > torch.arange(n - window, n, device=row.device)[:, None]] = float("-inf")
            columns, projected = logits.softmax(dim=-1)[:, candidates], v @ output[member].double()
            raw[head] += columns.norm(dim=0) * projected.norm(dim=1) / group
    kind, width = pooling
    reach = width // 2
    weights = [1 - ((i - reach) / (reach + 1)) ** 2 if kind == "parabola" else 1 for i in range(width)]
    padded = torch.nn.functional.pad(raw, (reach, reach))
    pooled = sum(weight * padded[:, i : i + count] for i, weight in enumerate(weights)) / sum(weights)
    scores = torch.full((heads, n - start), float("inf"), dtype=torch.float64, device=row.device)
    scores[:, sinks : sinks + count] = pooled
    return scores
