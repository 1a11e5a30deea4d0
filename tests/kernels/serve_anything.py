"""Serves random requests, without a GPU and without running a kernel, and prints what Triton would compile.

The first line is the number of kernels compiled at the start, every further one what a request was the
first to need. A process of its own: the interpreter must be off. The arguments are the seed, layers, KV
heads, query heads of each, ranks, tokens of the longest prompt, allocator, floor, dtype of the pool, and the
largest budget.
"""

import random
import sys
from types import SimpleNamespace
from typing import Any

import torch
from launches import instead_of_launching, variant

import laprox_kernels
from laprox_kernels import dispatch
from laprox_kernels.gpu import decode, score, select
from laprox_sglang.attention.decode_batch import DecodeBatch
from laprox_sglang.layers import ScoredLayer
from laprox_sglang.options.server import Config
from laprox_sglang.ranks import Ranks
from laprox_sglang.views.plan import Plan
from laprox_sglang.views.prune import Pruner
from laprox_sglang.views.view import View
from laprox_sglang.warmup import compile_kernels

seed, LAYERS, HEADS, GROUP, RANKS, LONGEST = map(int, sys.argv[1:-4])
ALLOCATOR, FLOOR = sys.argv[-4], float(sys.argv[-3])
POOL, MOST = getattr(torch, sys.argv[-2]), float(sys.argv[-1])
DIM, DTYPE, CONTEXT = 64, torch.bfloat16, LONGEST + 100
# There is no model: its layers come from here, and SGLang need not be imported.
no_module: Any = SimpleNamespace(k_scale_float=0.5, v_scale_float=None)
projection = torch.nn.Linear(HEADS * GROUP * DIM, 8, bias=False, dtype=DTYPE)
layers = [
    ScoredLayer(str(index), no_module, projection, index, HEADS * GROUP, HEADS, DIM, DIM**-0.5)
    for index in range(LAYERS)
]
CONFIG = Config(budget=0.1, budget_max=MOST, min_tokens=100, allocator=ALLOCATOR, floor=FLOOR)
rng = random.Random(seed)
# What no kernel has written is used as an index.
torch.empty = torch.zeros
variants: set[tuple] = set()
reached: set[tuple] = set()
dispatch.on_gpu = lambda device: True
for module in (score, select, decode):
    module.multiprocessors = lambda device: 132
decode._dependent = lambda device: True
instead_of_launching(lambda *launch: reached.add(variant(*launch)))


def new() -> set[tuple]:
    """What was not compiled before."""
    found = reached - variants
    variants.update(reached)
    reached.clear()
    return found


keys, values = torch.empty((2, LONGEST + 1, LAYERS, HEADS, DIM), dtype=POOL)
table = torch.zeros((70, CONTEXT), dtype=torch.int32)
queries = torch.zeros((LAYERS, CONFIG.longest_window, HEADS * GROUP, DIM), dtype=DTYPE)
laprox_kernels.check_serving = lambda *given: None

# Long prompts take several launches.
score.SCORE_BYTES = 2 * 4 * HEADS * GROUP * LONGEST // 3
ranks = Ranks(RANKS, 0, lambda tensor: tensor)
pruner = Pruner(CONFIG, layers, keys, values, table, LONGEST, ranks)
batch = DecodeBatch(table, LAYERS, HEADS)
compile_kernels(CONFIG, pruner, batch, keys, values, queries, ranks)
print(len(new()))

for _ in range(150):
    start = rng.choice([0, rng.randint(0, LONGEST - 100)])
    end = rng.randint(start + 100, LONGEST)
    sinks = rng.randint(0, 4)
    fewest = CONFIG.longest_window + sinks
    # Small views have another window.
    slots = rng.randint(fewest, end - start if rng.random() < 0.5 else 2 * fewest)
    plan = Plan(start, end, slots, sinks, CONFIG.window_of(slots - sinks), None)
    offset = rng.randint(0, LONGEST - slots)
    room = torch.arange(LONGEST)[offset : offset + slots]
    if CONFIG.elastic and rng.random() < 0.8:
        least = rng.randint(fewest, slots)
        plan = plan._replace(least=least, surplus=slots - least)
    row_index = rng.randrange(70)
    view = pruner.make_view(plan, row_index, queries, room, rng.random() < 0.5, rng.random() < 0.5)
    while view.surplus:
        view = pruner.shrink_view(view, row_index, rng.randint(plan.least, view.slots - 1))
    for found in new():
        print("prune", plan, *found)

offsets = torch.zeros(LAYERS * HEADS + 1, dtype=torch.int64)
views = [
    None,
    View.of(Plan(3, 40, 5, 0, 1, None), torch.arange(5), LAYERS, offsets, torch.zeros(len(offsets) + 1)),
]
batch.allocate(70)
for _ in range(40):
    rows, first = rng.randint(1, 69), rng.randint(0, 1)
    # As a model has them: a part of the product with the fused projection.
    fused = torch.zeros((rows, (GROUP + 2) * HEADS * DIM), dtype=DTYPE)
    tokens = fused[:, : GROUP * HEADS * DIM].reshape(rows, HEADS * GROUP, DIM)
    lengths = torch.randint(50, LONGEST, (rows + first,))[first:]
    batch.take_step([rng.choice(views) for _ in range(rows - 1)] + views[1:], lengths.tolist())
    indices = torch.arange(rows + first)[first:]
    if rng.random() < 0.5:
        batch.prepare(indices, lengths)
    else:
        batch.prepare_graph(indices, lengths)
        batch.make_plan()
    for at in range(LAYERS):
        laprox_kernels.decode(tokens, keys, values, at, batch.rows, 0.1, batch.plan)
    batch.forget()
    for found in new():
        print("decode", rows, *found)
