"""The rows that send a fixed number of sessions, at Llama-3.1-8B shapes, and in small for a CPU."""

from dataclasses import replace

from benchmarks.serving.load.workload import Workload

K = 1024
# In small: at most so many sessions, and a part of every length.
SMALL_SESSIONS, SMALL_PART, SMALL_PROMPT, SMALL_OUTPUT = 6, 48, 300, 16


def workloads(quick: bool, share: float = 1.0) -> dict[str, Workload]:
    """All rows by name, in the order in which they run; small ones if ``quick``.

    Args:
        share: size of the KV pool, as a share of an H200's: that many of the requests are sent that memory
            is to be short for.
    """

    def full(count: int) -> int:
        return max(2, round(count * share))

    lone = [
        Workload(
            f"lone-{name}", f"a lone request, {name.upper()} in, pruned", 16, tokens, 8, clients=1, rounds=5
        )
        for name, tokens in (("300", 300), ("1k", K), ("4k", 4 * K), ("8k", 8 * K))
    ]
    short = [
        Workload(
            *(f"short-{name}", f"{name.upper()} in, 256 out, 32 at once, pruned"),
            *(128 if tokens <= K else 64, tokens, 256), clients=32, rounds=3,
        )
        for name, tokens in (("300", 300), ("1k", K), ("4k", 4 * K))
    ]  # fmt: skip
    rows = [
        Workload("ttft", "a lone request, 32K in", 1, 32 * K, 8, rounds=7),
        Workload("ttft-127k", "a lone request, 127K in", 1, 127 * K, 64, rounds=3),
        *lone,
        Workload(
            "e", "128 in, 256 out, 64 at once, none pruned", 256, 128, 256, clients=64, rounds=3, pruned=0.0
        ),
        *short,
        Workload("d", "6 turns, 8K in, then 1K more each, 256 out", 4, 8 * K, 256, turns=6, addition=K),
        # An H200 has room for 24 of them on stock. 40 are a wave and two thirds of one: no count a little off
        # leaves a few to run alone, and two whole waves take longer than a part may.
        Workload("b-full", "32K in, 4K out, unique, the whole card", full(40), 32 * K, 4 * K),
        Workload(
            *("f", "agents: 4K shared, 24K of their own, 8 turns of 1K more"),
            *(full(20), 24 * K, 512), shared=4 * K, turns=8, addition=K,
        ),
        # Sized for servers with --max-total-tokens 262144: eight of them fit, whole.
        Workload("g", "20 agents, 32K in, 3 turns of 1K more", 20, 32 * K, 256, turns=3, addition=K),
        # Sized for servers with --max-total-tokens 147456: at 5 % all 64 fit, at 30 % a third of them.
        Workload("p", "bursts of 64, 16K in, 1K out, unique", 64, 16 * K, K, rounds=3),
        Workload("a", "32K in, 512 out, unique", full(48), 32 * K, 512),
        Workload(
            *("q", "32 questions about a cached document of 24K, 512 out"),
            *(32, 128, 512), shared=24 * K, groups=1,
        ),
        Workload(
            *("c", "8K shared and kept, 8K private, 512 out"),
            *(4 * full(32), 8 * K, 512), shared=8 * K, groups=4, keep=8 * K,
        ),
        Workload(
            *("c-open", "8K shared, not kept, 8K private, 512 out"),
            *(4 * full(32), 8 * K, 512), shared=8 * K, groups=4,
        ),
    ]  # fmt: skip
    return {row.name: small(row) if quick else row for row in rows}


def small(row: Workload) -> Workload:
    """The same shape in little; a prompt that is to be pruned is still long enough for it."""
    count = min(SMALL_SESSIONS, row.requests)
    prompt = max(SMALL_PROMPT, row.prompt // SMALL_PART) if row.pruned else 48
    output = min(row.output, max(4, min(SMALL_OUTPUT, row.output // 16)))
    return replace(
        row,
        what=f"{row.what}; in small",
        requests=count,
        prompt=prompt,
        output=output,
        shared=row.shared // SMALL_PART,
        keep=row.keep // SMALL_PART,
        addition=row.addition // 24,
        clients=min(row.clients, count),
        rounds=min(row.rounds, 2),
    )
