"""All workloads of the serving benchmark: at Llama-3.1-8B shapes, and in small for a CPU."""

from benchmarks.serving.workload import LAPROX, SERVERS, Workload

FIXED_SLOTS = 262_144
# What an admission workload lets LaProx reach before it stops: its target and a little.
ENOUGH = 5.1
# A name on the command line that stands for several workloads.
FAMILIES = ("sweep", "short", "lone")


def workloads(quick: bool, slots: int = FIXED_SLOTS, share: float = 1.0) -> dict[str, Workload]:
    """All workloads by name, in the order in which they run; the small ones if ``quick``.

    Args:
        slots: size of the fixed pool.
        share: size of the full pool, as a share of an H200's: that many of the requests are sent that
            memory is to be short for.
    """
    rows = quick_workloads() if quick else full_workloads(slots, share)
    return {row.name: row for row in rows}


def full_workloads(slots: int, share: float) -> list[Workload]:
    k = 1024
    in_flight = max(1, 4 * slots // FIXED_SLOTS) * 32 * k

    def fixed(count: int) -> int:
        return max(2, round(count * slots / FIXED_SLOTS))

    def full(count: int) -> int:
        return max(2, round(count * share))

    sweep = [
        Workload(
            *(
                f"sweep-{n}k",
                f"{n}K in, 512 out, {in_flight // k}K prompt tokens in flight",
                "fixed",
                (13, 13),
            ),
            *(in_flight // (n * k), n * k, 512),
        )
        for n in (4, 8, 16, 32)
    ]
    lengths = (("300", 300), ("1k", k), ("4k", 4 * k))
    lone = [
        Workload(
            *(f"lone-{name}", f"a lone request, {name.upper()} in, pruned", "fixed", (15, 15), 16, tokens, 8),
            clients=1, rounds=5,
        )
        for name, tokens in lengths
    ]  # fmt: skip
    short = [
        Workload(
            *(f"short-{name}", f"{name.upper()} in, 256 out, 32 at once, pruned", "fixed", (guess, guess)),
            *(128 if tokens <= k else 64, tokens, 256), clients=32, rounds=3,
        )
        for (name, tokens), guess in zip(lengths, (25, 30, 35), strict=True)
    ]  # fmt: skip
    return [
        Workload(
            *("b", f"32K in, 4K out, unique, {slots:,} slots", "fixed", (300, 90), fixed(35), 32 * k, 4 * k)
        ),
        # In b the weights alone are 0.4 of stock's step.
        Workload(
            *("b-itl", "b at the concurrency that stock reaches", "fixed", (0, 40), 7, 32 * k, 4 * k),
            servers=(LAPROX,), stock_of="b", at_peak=True,
        ),
        Workload("ttft", "a lone request, 32K in", "fixed", (18, 18), 1, 32 * k, 8, rounds=7),
        *lone,
        Workload(
            *("e", "128 in, 256 out, 64 at once, none pruned", "fixed", (27, 27), 256, 128, 256),
            clients=64, rounds=3, pruned=0.0,
        ),
        *short,
        Workload(
            *("d", "6 turns, 8K in, then 1K more each, 256 out", "fixed", (12, 12), 4, 8 * k, 256),
            turns=6, addition=k,
        ),
        *sweep,
        Workload("profile", "a lone request, 32K in, traced", "fixed", (20, 20), 1, 32 * k, 8, profile=True),
        # An H200 has room for 24 of them on stock. 40 are a wave and two thirds of one: no count a little off
        # leaves a few to run alone, and two whole waves take longer than a part may.
        Workload(
            *("b-full", "32K in, 4K out, unique, the whole card", "full", (260, 95, 165)),
            *(full(40), 32 * k, 4 * k), servers=SERVERS,
        ),
        Workload(
            *("f", "agents: 4K shared, 24K of their own, 8 turns of 1K more", "full", (140, 65, 100)),
            *(full(20), 24 * k, 512), shared=4 * k, turns=8, addition=k, servers=SERVERS,
        ),
        Workload("a", "32K in, 512 out, unique", "full", (100, 75), full(48), 32 * k, 512),
        Workload(
            *("a-itl", "a at the concurrency that stock reaches", "full", (0, 45), full(48), 32 * k, 512),
            servers=(LAPROX,), stock_of="a", at_peak=True,
        ),
        Workload(
            *("b-admit", "requests of b-full admitted at once", "full", (45, 180), full(160), 32 * k, 4 * k),
            admission=True,
        ),
        Workload(
            *("q", "32 questions about a cached document of 24K, 512 out", "full", (15, 10), 32, 128, 512),
            shared=24 * k, groups=1,
        ),
        Workload(
            *("c", "8K shared and kept, 8K private, 512 out", "full", (75, 60), 4 * full(32), 8 * k, 512),
            shared=8 * k, groups=4, keep=8 * k,
        ),
        Workload(
            *("c-open", "8K shared, not kept, 8K private, 512 out", "full", (75, 50)),
            *(4 * full(32), 8 * k, 512), shared=8 * k, groups=4,
        ),
        # Behind all others: it changes the server's weights.
        Workload(
            *("q-skew", "q, KV heads keep uneven numbers of cells", "full", (0, 15), 32, 128, 512),
            shared=24 * k, groups=1, servers=(LAPROX,), stock_of="q", skew=True,
        ),
    ]  # fmt: skip


def quick_workloads() -> list[Workload]:
    in_flight = 1200
    sweep = [
        Workload(f"sweep-{n}", f"{n} in, 8 out", "fixed", (2, 2), in_flight // n, n, 8)
        for n in (300, 400, 600)
    ]
    return [
        Workload("b", "600 in, 64 out, unique, 2,600 slots", "fixed", (20, 8), 8, 600, 64),
        Workload(
            *("b-itl", "b at the concurrency that stock reaches", "fixed", (0, 5), 8, 600, 64),
            servers=(LAPROX,), stock_of="b", at_peak=True,
        ),
        Workload("ttft", "a lone request, 600 in", "fixed", (3, 3), 1, 600, 4, rounds=7),
        Workload(
            *("lone-300", "a lone request, 300 in, pruned", "fixed", (3, 3), 3, 300, 4), clients=1, rounds=3
        ),
        Workload(
            *("e", "short prompts, none pruned", "fixed", (8, 8), 16, 48, 16),
            clients=8, rounds=3, pruned=0.0,
        ),
        Workload("short-300", "300 in, 16 out, pruned", "fixed", (5, 5), 8, 300, 16, clients=4, rounds=3),
        Workload("d", "6 turns, the history growing", "fixed", (8, 8), 2, 300, 8, turns=6, addition=40),
        *sweep,
        Workload("profile", "a lone request, 600 in, traced", "fixed", (10, 10), 1, 600, 8, profile=True),
        Workload(
            *("b-full", "600 in, 64 out, unique, 6,000 slots", "full", (15, 15, 15), 16, 600, 64),
            servers=SERVERS,
        ),
        Workload(
            *("f", "agents: 100 shared, 300 of their own, 3 turns of 40 more", "full", (10, 10, 10)),
            *(4, 300, 8), shared=100, turns=3, addition=40, servers=SERVERS,
        ),
        Workload("a", "600 in, 16 out, unique", "full", (6, 5), 12, 600, 16),
        Workload(
            *("a-itl", "a at the concurrency that stock reaches", "full", (0, 5), 12, 600, 16),
            servers=(LAPROX,), stock_of="a", at_peak=True,
        ),
        Workload(
            *("b-admit", "requests of b admitted to 6,000 slots", "full", (10, 15), 60, 600, 64),
            admission=True,
        ),
        Workload(
            *("q", "4 questions about a cached document of 2,000", "full", (5, 5), 4, 40, 16),
            shared=2000, groups=1,
        ),
        Workload(
            *("c", "300 shared and kept, 300 private, 16 out", "full", (6, 6), 8, 300, 16),
            shared=300, groups=2, keep=300,
        ),
        Workload(
            *("c-open", "300 shared, not kept, 300 private, 16 out", "full", (6, 6), 8, 300, 16),
            shared=300, groups=2,
        ),
        Workload(
            *("q-skew", "q, KV heads keep uneven numbers of cells", "full", (0, 6), 4, 40, 16),
            shared=2000, groups=1, servers=(LAPROX,), stock_of="q", skew=True,
        ),
    ]  # fmt: skip
