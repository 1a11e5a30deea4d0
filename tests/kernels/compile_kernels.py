"""Compiles every kernel for sm_80 and sm_90 as the package launches it, on a machine without a GPU.

Triton's interpreter runs what its compiler refuses: a name that changes its type in a branch, say.
A process of its own: the interpreter must be off. Prints, per kernel, the largest shared memory in
bytes, and how many loads from it are of one or two bytes where a pool is of fp8: - where none is.
"""

import re
from collections import Counter

import torch
import triton
from launches import TARGETS, instead_of_launching, source, variant

from laprox_kernels import POOLINGS, Rows
from laprox_kernels.gpu import decode, floor, layout, pack, score, select
from laprox_sglang.options.server import Config

targets = list(TARGETS)
compiled: set[tuple] = set()
shared: dict[tuple, int] = {}
narrow: Counter[tuple] = Counter()
NARROW = re.compile(r"ld\.shared\S*\.b(8|16)\b")


def compile_only(kernel, arguments, keywords):
    for target in targets:
        key = (target.arch, *variant(kernel, arguments, keywords, target))
        if key in compiled:
            continue
        compiled.add(key)
        code, options = source(kernel, arguments, keywords, target)
        made = triton.compile(code, target=target, options=options)
        name = (kernel.__name__, target.arch)
        shared[name] = max(shared.get(name, 0), made.metadata.shared)
        if "*fp8e4nv" in code.signature.values():
            narrow[name] += len(NARROW.findall(made.asm["ptx"]))


def run(dtype, heads, group, dim, window, pool=None):
    keys, values = torch.zeros((2, 600, 2, heads, dim), dtype=pool or dtype)
    slots = torch.arange(1, 513)
    queries = torch.zeros((2, window, heads * group, dim), dtype=dtype)
    gram = torch.zeros((2, heads * group, dim, dim))
    scores = torch.zeros((2, heads, 512))
    for kind in POOLINGS:
        pooling = kind, Config().pooling_kernel
        score.score(queries, keys, values, slots, 0, gram, torch.ones(2), 4, pooling, scores)
    cu_cells = torch.zeros(2 * heads + 1).long()
    for out in (None, torch.zeros_like(scores)):
        floor.floor(scores, 32, out=out)
        floor.floor(scores.view(-1), 32, cu_cells, None if out is None else out.view(-1))
    kept = torch.arange(2 * heads * 64)
    select.select(scores, len(kept))
    for staged in (False, True):
        for positions in (None, torch.zeros(len(kept)).int()):
            pack.pack(keys, values, slots, kept, slots[:64], staged, positions)
        pack.pack(keys, values, None, kept, slots[:64], staged)
    rows = Rows(
        torch.ones((3, 64), dtype=torch.int32),
        torch.ones(3, dtype=torch.int64),
        torch.zeros((3, 1), dtype=torch.int64),
        torch.zeros((3, 1, 2 * heads + 1), dtype=torch.int64),
    )
    table = torch.ones((9, 64), dtype=torch.int32)
    layout.layout(table, torch.arange(3), torch.ones(3).long(), torch.zeros((3, 3)).long(), rows)
    plan = decode.plan(rows, 2, heads)
    decode.decode(queries[0, :3], keys, values, 1, rows, 0.1, plan)


if __name__ == "__main__":
    instead_of_launching(compile_only)
    run(torch.bfloat16, 8, 4, 128, 64)
    run(torch.bfloat16, 2, 15, 128, 64)
    run(torch.float16, 2, 3, 64, 32)
    del targets[0]
    decode._dependent = lambda device: True
    run(torch.bfloat16, 2, 16, 128, 64)
    # Triton reads e4m3 from sm_89 on.
    run(torch.bfloat16, 8, 4, 128, 64, torch.float8_e4m3fn)
    run(torch.bfloat16, 2, 3, 64, 32, torch.float8_e4m3fn)
    for key, size in sorted(shared.items()):
        print(*key, size, narrow.get(key, "-"))
