"""Copies to host memory and back: where SGLang wants an idle server, they end first.

It refuses a flush while something is copied, and ends over memory that is to be released. A paused engine
never looks whether a copy has ended, so that asking again would not help.
"""

from sglang.srt.plugins.hook_registry import HookType

from laprox_patches.scheduler.step import TARGET, cache
from laprox_patches.scheduler.weights import UPDATER
from laprox_patches.seam import Seam
from laprox_sglang.ports import Scheduler, WeightUpdater


def flush(self: Scheduler, empty_cache: bool = True) -> None:
    tree = cache(self)
    if tree.copying:
        tree.wait_for_copies()


def release(self: WeightUpdater, recv_req: object) -> None:
    if self.scheduler is not None:
        flush(self.scheduler)


SEAMS = (
    Seam(TARGET + "flush_cache", flush, HookType.BEFORE, ("self", "empty_cache")),
    Seam(UPDATER + "release_memory_occupation", release, HookType.BEFORE, ("self", "recv_req")),
)
