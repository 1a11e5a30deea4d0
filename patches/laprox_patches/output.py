"""Output streamer: a finished request carries its facts out on its last token."""

from typing import Any

from sglang.srt.managers.utils import is_health_check_generate_req
from sglang.srt.plugins.hook_registry import HookType

from laprox_patches.seam import Seam
from laprox_sglang.report import request_facts
from laprox_sglang.views.state import RequestState


def attach_facts(self: Any, reqs: list[Any], return_logprob: bool, skip_req: Any = None) -> None:
    for req in reqs:
        state: RequestState | None = getattr(req, "laprox", None)
        # Overlap scheduling brings a finished request here a second time.
        if state is None or state.outcome is None or req.finished_output:
            continue
        if req is skip_req or is_health_check_generate_req(req):
            continue
        if req.finished():
            entries = pad_entries(req, len(req.output_ids_through_stop))
            if entries:
                entries[-1] = request_facts(
                    state.outcome, len(req.origin_input_ids), req.cached_tokens, state.options.return_kept
                )
            self.tree_cache.totals.add_finished(state.outcome, state.held)
        elif req.stream and self.server_args.incremental_streaming_output:
            # Such a stream is cut up by token: what is missing in one chunk shifts all that follow.
            pad_entries(req, len(req.output_ids))


def pad_entries(req: Any, length: int) -> list[Any]:
    """The request's entries; SGLang wants one for every output token, and slices off what it has sent."""
    if req.customized_info is None:
        req.customized_info = {}
    entries: list[Any] = req.customized_info.setdefault("laprox", [])
    entries.extend([None] * (length - len(entries)))
    del entries[length:]
    return entries


SEAMS = (
    Seam(
        "sglang.srt.managers.scheduler_components.output_streamer.SchedulerOutputStreamer.stream_output",
        attach_facts,
        HookType.BEFORE,
        ("self", "reqs", "return_logprob", "skip_req"),
    ),
)
