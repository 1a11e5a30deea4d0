"""Busy leak check: stock counts logical columns as slots; of a pruned request that is too many."""

from sglang.srt.plugins.hook_registry import HookType

from laprox_patches.seam import Seam
from laprox_sglang.ports import LeakCheck
from laprox_sglang.views.state import view_of


def without_spared(result: tuple[int, int], self: LeakCheck) -> tuple[int, int]:
    full, swa = result
    views = [view_of(req) for req in self._requests_owning_rows()]
    return full - sum(view.spared for view in views if view), swa


SEAMS = (
    Seam(
        "sglang.srt.managers.scheduler_components.invariant_checker.SchedulerInvariantChecker"
        "._get_total_uncached_sizes",
        without_spared,
        HookType.AFTER,
        ("self",),
        "Tuple[int, int]",
    ),
)
