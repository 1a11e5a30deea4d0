"""What pruning and decoding take kernel by kernel, and copies to host memory and back."""

from typing import Any

from benchmarks.harness.markdown import commit, table
from benchmarks.tables.committed import kernels

HISTORIES = (1024, 8192, 32768, 131072)
STEPS = ("scoring", "selecting", "packing apart", "all three, apart")
BATCHES = ("32 x 8192", "64 x 1638", "8 x 8192", "1 x 8192")
FLASHINFER = "FlashInfer dense decode, stock layout, same bytes"
COPIES = ("write, by rows", "load, by rows", "write, whole slots", "load, whole slots")


def about(content: dict[str, Any]) -> str:
    used = content["versions"]
    return f"{content['chip']}, {content['date']}, commit {commit(content)}, Triton {used['triton']}."


def pruning() -> str:
    """What pruning takes of a prompt, by the length of its history."""
    content = kernels()
    times = {row["case"]: row["ms"] for row in content["rows"] if row["kernel"] == "prune"}
    lines = []
    for tokens in HISTORIES:
        case = f"{tokens} tokens, 5% kept"
        of_steps = [f"{times[f'{case}, {step}']:.2f} ms" for step in STEPS]
        lines.append((f"{tokens:,}", *of_steps, f"{times[f'{case}, fp8, {STEPS[-1]}']:.2f} ms"))
    head = ("tokens of history", "scoring", "selecting", "packing", "all three", "all three, fp8 KV")
    return f"{about(content)}\n\n{table(head, lines, right=5)}"


def decoding() -> str:
    """Attention of a decode step in one layer, beside FlashInfer's over as many cells that are not packed."""
    content = kernels()
    rows = {(row["case"], row["vs"]): row for row in content["rows"] if row["kernel"] == "decode"}
    lines = []
    for batch in BATCHES:
        bf16, fp8 = (rows[f"{batch}, packed, even{what}", FLASHINFER] for what in ("", ", fp8"))
        times = [f"{row[key]:.3f} ms" for row in (bf16, fp8) for key in ("ms", "vs_ms")]
        count, slots = batch.split(" x ")
        lines.append((f"{count} of {int(slots):,} slots", *times, f"{bf16['ms'] / fp8['ms']:.2f}"))
    head = ("views", "packed, bf16", "FlashInfer, bf16", "packed, fp8", "FlashInfer, fp8", "fp8 is faster by")
    return f"{about(content)}\n\n{table(head, lines, right=5)}"


def copies() -> str:
    """GB/s between KV pool and pinned host memory, and what a copy costs the products beside it."""
    content = kernels()
    rows = {row["kernel"]: row for row in content["rows"] if row["case"].startswith("32768 slots")}
    lines = []
    for name in COPIES:
        beside = rows.get(f"products beside {name}")
        speed = rows[name]["case"].partition(", ")[2]
        lines.append(
            (name, speed, f"{rows[name]['ms']:.0f} ms", f"{beside['ratio_vs']:.2f}" if beside else "")
        )
    head = ("32,768 slots of an 8B model", "", "time", "matrix products beside it take, times")
    return f"{about(content)}\n\n{table(head, lines, right=3)}"
