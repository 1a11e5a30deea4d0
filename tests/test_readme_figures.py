"""The figures in the README are those of the committed results."""

import json
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
README = (ROOT / "README.md").read_text()


def results(name):
    return json.loads((ROOT / "benchmarks" / "results" / f"{name}-h200.json").read_text())


@pytest.mark.parametrize(
    ("workload", "figure", "cells"),
    [
        ("a", "output_tok_s", "| output tokens/s | {stock:.0f} | {laprox:.0f} | {ratio:.2f} |"),
        ("a", "peak_concurrency", "| requests at once | {stock} | {laprox}, all there were | {ratio:.2f} |"),
        ("a", "itl_p50", "| time between tokens, median | {stock:.1f} ms | {laprox:.1f} ms | {ratio:.2f} |"),
        ("a-itl", "itl_p50", "given 26 requests only | {stock:.1f} ms | {laprox:.1f} ms | {ratio:.2f} |"),
        ("b", "output_tok_s", "| output tokens/s | {stock:.0f} | {laprox:,.0f} | {ratio:.2f} |"),
        ("b", "peak_concurrency", "| requests at once | {stock} | {laprox}, all there were | {ratio:.1f} |"),
        ("b", "itl_p50", "| time between tokens, median | {stock:.2f} ms | {laprox:.2f} ms | {ratio:.2f} |"),
        ("b-itl", "itl_p50", "given 7 requests only | {stock:.2f} ms | {laprox:.2f} ms | {ratio:.3f} |"),
        (
            "b-full",
            "peak_concurrency",
            "at once | {stock} | {laprox}, then stopped | {ratio:.1f} |",
        ),
        ("c", "output_tok_s", "| output tokens/s | {stock:.0f} | {laprox:,.0f} | {ratio:.2f} |"),
        ("c", "prefix_hit_tokens", "from the prefix cache | {stock:,} | {laprox:,} | {ratio:.2f} |"),
        ("d", "output_tok_s", "| output tokens/s | {stock:.0f} | {laprox:.0f} | **{ratio:.2f}** |"),
        ("e", "output_tok_s", "| output tokens/s | {stock:,.0f} | {laprox:,.0f} | {ratio:.3f} ("),
        ("ttft", "ttft_p50", "| time to first token | {stock:,.0f} ms | {laprox:,.0f} ms | {ratio:.3f} ("),
    ],
)
def test_serving(workload, figure, cells):
    row = next(row for row in results("serving")["rows"] if row["workload"] == workload)
    stock, laprox = row["stock"][figure], row["laprox"][figure]
    assert cells.format(stock=stock, laprox=laprox, ratio=row["ratio"][figure]) in README


def test_kernels():
    rows = results("kernels")["rows"]
    plain = {row["case"]: {} for row in rows if "no compressed row" in row["case"]}
    for row in rows:
        if row["case"] in plain:
            plain[row["case"]]["same" if "same pool" in row["vs"] else "stock"] = row["ratio_vs"]
    assert len(plain) == 4
    for case, ratio in plain.items():
        size = case.partition(",")[0].replace("x", "×").replace("8192", "8,192").replace("1638", "1,638")
        assert f"| {size} | {ratio['same']:.3f} | {ratio['stock']:.3f} |" in README
    pack = next(row for row in rows if row["kernel"] == "pack" and "5% kept" in row["case"])
    assert f"| {pack['ms']:.2f} ms | {1 / pack['ratio_floor']:.0%}".replace("%", " % of copy") in README


def test_checks():
    value = {row["what"]: row["value"] for row in results("checks")["rows"]}
    for what, name in [("requests in 300 s", "requests"), ("prunings",) * 2, ("retractions",) * 2]:
        assert f"{value[what]:,} {name}" in README
    aborts = sum(
        value[f"aborts {when}"] for when in ("in the queue", "amid a chunked prefill", "while decoding")
    )
    assert f"{aborts:,} aborts" in README
    assert f"GPU memory {value['GPU memory: largest, above the first']:.0f} MiB above" in README
