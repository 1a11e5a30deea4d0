"""Whether this machine can serve: Python, system, memory, GPU."""

import platform
import subprocess
from collections.abc import Iterator
from importlib.metadata import PackageNotFoundError, metadata
from pathlib import Path

from packaging.specifiers import SpecifierSet

from laprox_sglang.options.values import shown
from laprox_tools.doctor.finding import Area, Finding

DISTRIBUTION = "laprox-sglang"
# A server is three processes of 1.1 to 1.5 GB each, weights not counted.
LEAST_MEMORY_GB = 5
# A pool is sized by what is free when the server starts.
OTHERS_SHARE = 0.1

area = Area("machine")


def check_machine() -> Iterator[Finding]:
    yield python()
    yield system()
    yield memory()
    yield from gpu()


def python() -> Finding:
    version = platform.python_version()
    try:
        served = metadata(DISTRIBUTION)["Requires-Python"]
    except PackageNotFoundError:
        return area.ok("Python", version)
    if version in SpecifierSet(served):
        return area.ok("Python", version)
    return area.error("Python", f"{version} is not served, only {served}", "use one of those")


def system() -> Finding:
    found = f"{platform.system()} on {platform.machine()}"
    if found == "Linux on x86_64":
        return area.ok("system", found)
    return area.warning("system", f"{found}: never tried", "use Linux on x86_64 if something fails")


def memory() -> Finding:
    try:
        lines = Path("/proc/meminfo").read_text().splitlines()
        kilobytes = {name: int(rest.split()[0]) for name, _, rest in (line.partition(":") for line in lines)}
        total, free = (kilobytes[name] * 1024 / 1e9 for name in ("MemTotal", "MemAvailable"))
    except (OSError, KeyError, ValueError):
        unknown = "unknown: /proc/meminfo does not tell"
        return area.warning("memory", unknown, f"see that {LEAST_MEMORY_GB} GB are free")
    found = f"{free:.0f} of {total:.0f} GB available"
    if free >= LEAST_MEMORY_GB:
        return area.ok("memory", found)
    return area.warning("memory", found, f"free some: a server's processes take about {LEAST_MEMORY_GB} GB")


def gpu() -> Iterator[Finding]:
    try:
        import torch
    except (ImportError, OSError) as error:
        yield area.error("GPU", f"PyTorch cannot be imported: {error}", "pip install laprox-sglang")
        return
    if torch.version.cuda is None or not torch.cuda.is_available():
        yield no_gpu(f"PyTorch {torch.__version__}, made for CUDA {torch.version.cuda},")
        return
    from laprox_kernels.dispatch import SHARED_MEMORY, on_gpu
    from laprox_kernels.gpu.support import shared_memory

    for index in range(torch.cuda.device_count()):
        device = torch.device("cuda", index)
        name = f"GPU {index}"
        try:
            free, total = torch.cuda.mem_get_info(device)
            found = f"{torch.cuda.get_device_name(device)}, {driver()}"
        except RuntimeError as error:
            # One that is broken, or that somebody has for himself: the others are looked at all the same.
            yield area.error(name, f"PyTorch does not reach it: {shown(error)}", "see what nvidia-smi says")
            continue
        if not on_gpu(device):
            yield area.error(name, f"{found}: older than sm_80", "use an A100, H100, H200 or newer")
            continue
        try:
            shared = shared_memory(device)
        except Exception as error:
            yield area.error(name, f"{found}: Triton does not reach it: {error}", "reinstall triton")
            continue
        if shared < SHARED_MEMORY:
            yield area.error(
                name,
                f"{found}: {shared // 1024} KB of shared memory per block, of {SHARED_MEMORY // 1024} needed",
                "use an A100, H100 or H200: A10, L4, L40S and RTX cards have less",
            )
            continue
        yield area.ok(name, f"{found}, {shared // 1024} KB of shared memory per block")
        held = f"{free / 2**30:.1f} of {total / 2**30:.1f} GiB free"
        if total - free > OTHERS_SHARE * total:
            yield area.warning(f"{name} memory", held, "stop what holds the rest: the KV pool gets less")
        else:
            yield area.ok(f"{name} memory", held)


def no_gpu(pytorch: str) -> Finding:
    seen = nvidia_smi("name,driver_version")
    if seen is None:
        return area.warning(
            "GPU", "none: a server runs on the CPU, for tests and demonstrations", "use an A100, H100 or H200"
        )
    return area.error(
        "GPU",
        f"nvidia-smi sees {seen}, but {pytorch} does not",
        "install a driver for that CUDA, or unset CUDA_VISIBLE_DEVICES",
    )


def driver() -> str:
    return f"driver {nvidia_smi('driver_version') or 'unknown'}"


def nvidia_smi(fields: str) -> str | None:
    """These fields of the first GPU; None without one."""
    command = ["nvidia-smi", f"--query-gpu={fields}", "--format=csv,noheader"]
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=30, check=True)
    except (OSError, subprocess.SubprocessError):
        return None
    return next(iter(done.stdout.splitlines()), None)
