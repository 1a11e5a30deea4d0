"""Times every kernel at Llama-3.1-8B shapes against its floor and against the best alternative.

    python -m benchmarks.kernels [--quick] [--json FILE] [--only prune]

The floor of a row is the larger of its bytes over the copy bandwidth and its operations over the
bf16 matrix rate, both measured in the same run. ``ratio_vs`` is a kernel's time over the
alternative's: below 1 it is the faster one. Needs a GPU; FlashInfer rows need ``flashinfer``.
"""

from pathlib import Path

import torch
from rich.console import Console
from rich.table import Table

from benchmarks.harness.arguments import parser as parser_of
from benchmarks.harness.provenance import fault_of
from benchmarks.kernels import attend, host, prune
from benchmarks.kernels.bench import Bench

BENCHES = {"prune": prune.bench_prune, "decode": attend.bench_decode, "host": host.bench_host}


def show(bench: Bench) -> None:
    table = Table(title=f"{torch.cuda.get_device_name()}: copy {bench.copy_gbps:.0f} GB/s, "
                  f"bf16 matmul {bench.matmul_tflops:.0f} TFLOP/s")  # fmt: skip
    for column in ("kernel", "case", "ms", "floor ms", "of floor", "against", "its ms", "ratio"):
        table.add_column(column, justify="left" if column in ("kernel", "case", "against") else "right")
    for row in bench.rows:
        times = f"{row['ms']:.3f}", f"{row['floor_ms']:.3f}", f"{row['ratio_floor']:.2f}"
        against = (row["vs"], f"{row['vs_ms']:.3f}", f"{row['ratio_vs']:.2f}") if row["vs"] else ()
        table.add_row(row["kernel"], row["case"], *times, *against)
    Console(width=170).print(table)


def main() -> None:
    parser = parser_of("kernels", __doc__)
    parser.add_argument("--quick", action="store_true", help="headline sizes only, fewer repetitions")
    parser.add_argument("--json", metavar="FILE", type=Path, help="also write the rows to FILE")
    parser.add_argument("--only", metavar="NAMES", help="comma-separated: " + ", ".join(BENCHES))
    arguments = parser.parse_args()
    names = arguments.only.split(",") if arguments.only else list(BENCHES)
    if unknown := [name for name in names if name not in BENCHES]:
        parser.error(f"--only: no kernel {', '.join(unknown)}; there are {', '.join(BENCHES)}")
    if fault := fault_of(arguments.json):
        parser.error(f"--json: {fault}")
    if not torch.cuda.is_available():
        parser.error("needs a GPU")
    torch.manual_seed(0)
    bench = Bench(arguments.quick, arguments.json)
    for name in names:
        BENCHES[name](bench)
        torch.cuda.empty_cache()
    show(bench)


if __name__ == "__main__":
    main()
