"""What the interpreter does not show: that every kernel compiles, and fits."""

import os
import subprocess
import sys
from pathlib import Path

from laprox_kernels.dispatch import SHARED_MEMORY

KERNELS = """
_plan_kernel _decode_kernel _merge_kernel _extend_kernel _layout_kernel _save_kernel _pack_kernel rows_kernel
normaliser_kernel contribution_kernel joint_kernel pool_kernel _histogram_kernel _count_kernel _compact_kernel
""".split()


def test_every_kernel_compiles_and_fits_into_the_shared_memory_asked_for():
    environment = {name: value for name, value in os.environ.items() if name != "TRITON_INTERPRET"}
    script = Path(__file__).with_name("compile_kernels.py")
    done = subprocess.run(
        [sys.executable, str(script)], env=environment, capture_output=True, text=True, timeout=900
    )
    assert done.returncode == 0, done.stderr[-3000:]
    sizes = {tuple(line.split()[:2]): int(line.split()[2]) for line in done.stdout.splitlines()}
    assert set(sizes) == {(name, arch) for name in KERNELS for arch in ("80", "90")}
    for (name, arch), size in sizes.items():
        assert size <= (SHARED_MEMORY if arch == "80" else 227 * 1024), (name, arch, size)
