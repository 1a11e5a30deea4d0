"""Compiles every kernel for sm_80 and sm_90 as the package launches it, on a machine without a GPU.

Triton's interpreter runs what its compiler refuses: a name that changes its type in a branch, say.
A process of its own: the interpreter must be off. Prints, per kernel, the largest shared memory in
bytes.
"""

import torch
import triton
from triton.backends.compiler import GPUTarget
from triton.compiler import ASTSource
from triton.runtime.jit import JITFunction

from laprox_kernels import Rows
from laprox_kernels.gpu import decode, extend, layout, pack, score, select

TARGETS = [GPUTarget("cuda", 80, 32), GPUTarget("cuda", 90, 32)]
TYPES = {torch.bfloat16: "bf16", torch.float16: "fp16", torch.float32: "fp32"}
TYPES |= {torch.int32: "i32", torch.int64: "i64"}
OPTIONS = {"num_warps", "num_stages", "launch_pdl"}
seen: dict[tuple, int] = {}
dependent = False


def compile_only(kernel, grid):
    def launch(*arguments, **keywords):
        options = {name: keywords.pop(name) for name in OPTIONS & keywords.keys()}
        bound = dict(zip(kernel.arg_names, arguments, strict=False)) | keywords
        signature, constants, attributes = {}, {}, {}
        for index, parameter in enumerate(kernel.params):
            value = bound[parameter.name]
            if parameter.is_constexpr or value is None:
                signature[parameter.name] = "constexpr"
                constants[index,] = value
                continue
            if isinstance(value, torch.Tensor):
                signature[parameter.name] = f"*{TYPES[value.dtype]}"
            else:
                signature[parameter.name] = "fp32" if isinstance(value, float) else "i32"
            aligned = isinstance(value, torch.Tensor) or (value % 16 == 0 and not parameter.do_not_specialize)
            if aligned:
                attributes[index,] = [["tt.divisibility", 16]]
        source = ASTSource(kernel, signature, constants, attributes)
        for target in TARGETS[1:] if dependent else TARGETS:
            made = triton.compile(source, target=target, options=options)
            key = (kernel.__name__, target.arch)
            seen[key] = max(seen.get(key, 0), made.metadata.shared)

    return launch


def run(dtype, heads, group, dim, window):
    keys, values = torch.zeros((2, 600, 2, heads, dim), dtype=dtype)
    slots = torch.arange(1, 513)
    queries = torch.zeros((window, heads * group, dim), dtype=dtype)
    gram = torch.zeros((heads * group, dim, dim))
    scores = torch.zeros((2, heads, 512))
    for form in ("mean", "joint"):
        joint = torch.zeros((heads * group, group, dim, dim))
        layer = keys[:, 0], values[:, 0], slots, 0, gram if form == "mean" else joint
        score.score(queries, *layer, 0.1, 4, 7, scores[0], form)
    kept = torch.arange(2 * heads * 64)
    select.select(scores, len(kept))
    pack.pack(keys, values, slots, kept)
    pack.pack(keys, values, slots, kept, torch.zeros(len(kept)).int(), scores, torch.zeros(len(kept)))
    rows = Rows(
        torch.ones((3, 64), dtype=torch.int32),
        torch.ones(3, dtype=torch.int64),
        torch.zeros((3, 1), dtype=torch.int64),
        torch.zeros((3, 1, 2 * heads + 1), dtype=torch.int64),
    )
    table = torch.ones((9, 64), dtype=torch.int32)
    layout.layout(table, torch.arange(3), torch.ones(3).long(), torch.zeros((3, 3)).long(), rows)
    plan = decode.plan(rows, 2, heads)
    decode.decode(queries[:3], keys, values, 1, rows, 0.1, plan)
    cu_new = torch.tensor([0, 4, 9, 13])
    extend.extend(queries[:13], keys, values, 1, rows, torch.arange(13), cu_new, 5, 0.1)


if __name__ == "__main__":
    JITFunction.__getitem__ = compile_only
    run(torch.bfloat16, 8, 4, 128, 64)
    run(torch.bfloat16, 2, 7, 128, 64)
    run(torch.float16, 2, 3, 64, 32)
    dependent = True
    decode._dependent = lambda device: True
    run(torch.bfloat16, 8, 4, 128, 64)
    for (name, arch), shared in sorted(seen.items()):
        print(name, arch, shared)
