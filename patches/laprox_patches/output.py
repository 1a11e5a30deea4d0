"""Output: a finished request carries its facts out on its last token, to where the reply is made."""

from typing import Any

from sglang.srt.managers.utils import is_health_check_generate_req
from sglang.srt.plugins.hook_registry import HookType

from laprox_patches.seam import Seam
from laprox_sglang.report.facts import request_facts
from laprox_sglang.report.positions import encode
from laprox_sglang.report.reporter import Reporter
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
            finish(self.tree_cache.report, req, state)
        elif req.stream and self.server_args.incremental_streaming_output:
            # Such a stream is cut up by token: what is missing in one chunk shifts all that follow.
            pad_entries(req, len(req.output_ids))


def finish(report: Reporter, req: Any, state: RequestState) -> None:
    outcome = state.outcome
    assert outcome is not None
    entries = pad_entries(req, len(req.output_ids_through_stop))
    if not outcome.settled:
        return
    options = state.options
    said = request_facts(
        outcome, len(req.origin_input_ids), req.cached_tokens, options.return_kept, options.instructions.how
    )
    if entries:
        entries[-1] = said
    report.finished(said, state.held)


def pad_entries(req: Any, length: int) -> list[Any]:
    """The request's entries; SGLang wants one for every output token, and slices off what it has sent."""
    if req.customized_info is None:
        req.customized_info = {}
    entries: list[Any] = req.customized_info.setdefault("laprox", [])
    entries.extend([None] * (length - len(entries)))
    del entries[length:]
    return entries


def encode_facts(
    result: None,
    self: Any,
    meta_info: dict[str, Any],
    state: Any,
    customized_info: dict[str, Any],
    index: int,
    finish_reason: dict[str, Any] | None,
) -> None:
    """In the process that makes the reply: the scheduler has other things to do."""
    entries = meta_info.get("laprox")
    if finish_reason is not None and entries and entries[-1] is not None:
        entries[-1] = encode(entries[-1])
        # For `replies`, which sees the chunks of a stream and not what they were made of.
        state.obj.laprox_facts = entries[-1]


SEAMS = (
    Seam(
        "sglang.srt.managers.scheduler_components.output_streamer.SchedulerOutputStreamer.stream_output",
        attach_facts,
        HookType.BEFORE,
        ("self", "reqs", "return_logprob", "skip_req"),
    ),
    Seam(
        "sglang.srt.managers.tokenizer_manager.TokenizerManager.update_request_meta_info",
        encode_facts,
        HookType.AFTER,
        ("self", "meta_info", "state", "customized_info", "index", "finish_reason"),
        "None",
    ),
)
