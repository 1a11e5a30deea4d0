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
        ("f", "output_tok_s", "| output tokens/s | {stock:.0f} | {laprox:,.0f} | {ratio:.2f} |"),
        ("f", "itl_p50", "| time between tokens, median | {stock:.1f} ms | {laprox:.1f} ms | {ratio:.2f} |"),
        ("f", "ttft_p50", "of all turns | {stock:,.0f} ms | {laprox:,.0f} ms | **{ratio:.2f}** |"),
        ("f", "slots_mean", "| slots pinned, mean | {stock:,} | {laprox:,} | {ratio:.2f} |"),
        ("f", "prefix_hit_tokens", "from the prefix cache | {stock:,} | {laprox:,} | {ratio:.2f} |"),
        ("d", "output_tok_s", "| output tokens/s | {stock:.0f} | {laprox:.0f} | {ratio:.2f} |"),
        ("d", "ttft_p50", "median | {stock:.0f} ms | {laprox:.0f} ms | **{ratio:.2f}** |"),
        ("q", "output_tok_s", "| output tokens/s | {stock:,.0f} | {laprox:,.0f} | {ratio:.2f} |"),
        ("q", "itl_p50", "| time between tokens, median | {stock:.1f} ms | {laprox:.1f} ms | {ratio:.3f} |"),
        ("c-open", "output_tok_s", "| output tokens/s | {stock:.0f} | {laprox:,.0f} | {ratio:.2f} |"),
        ("c-open", "peak_concurrency", "at once | {stock} | {laprox}, all there were | {ratio:.2f} |"),
        ("e", "output_tok_s", "| output tokens/s | {stock:,.0f} | {laprox:,.0f} | {ratio:.3f} |"),
        ("ttft", "ttft_p50", "| time to first token | {stock:,.0f} ms | {laprox:,.0f} ms | {ratio:.3f} |"),
    ],
)
def test_serving(workload, figure, cells):
    row = next(row for row in results("serving")["rows"] if row["workload"] == workload)
    stock, laprox = row["stock"][figure], row["laprox"][figure]
    assert cells.format(stock=stock, laprox=laprox, ratio=row["ratio"][figure]) in README


def test_serving_of_one_side():
    row = next(row for row in results("serving")["rows"] if row["workload"] == "b")
    assert f"LaProx {row['laprox']['output_tok_s']:,.0f} tokens/s" in README
    old = next(row for row in results("sglang-0.5.17/serving")["rows"] if row["workload"] == "b")
    assert f"({old['stock']['output_tok_s']:.0f} with SGLang" in README
    assert (
        f"{old['ratio']['output_tok_s']:.2f} times less than LaProx's {old['laprox']['output_tok_s']:,.0f}"
        in README
    )


def test_pruning_time():
    rows = {row["case"]: row["ms"] for row in results("kernels-prune")["rows"]}
    for tokens in (1024, 8192, 32768, 131072):
        parts = [rows[f"{tokens} tokens, 5% kept, {part}"] for part in
                 ("scoring", "selecting", "packing apart", "all three, apart")]  # fmt: skip
        assert " | ".join(["", *(f"{part:.2f} ms" for part in parts), ""]).strip() in README


def test_checks():
    value = {row["what"]: row["value"] for row in results("checks")["rows"]}
    whole = value["exact answers, unpruned, 256 prompts of 4,096 tokens"]
    assert f"{whole:.1f} % exact unpruned, {value['exact answers, 10 %']:.1f} % at" in README
