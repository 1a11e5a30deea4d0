"""Output: a request that has ended carries its facts out, to where its reply is made."""

from collections.abc import Callable
from typing import Any

from sglang.srt.managers.utils import is_health_check_generate_req
from sglang.srt.plugins.hook_registry import HookType

from laprox_patches.seam import Seam
from laprox_sglang.report.facts import request_facts
from laprox_sglang.report.positions import encode
from laprox_sglang.report.reporter import Reporter
from laprox_sglang.views.state import RequestState


def opt_in(result: None, self: Any) -> None:
    """Makes SGLang ask for output of our own, which it does not cut up by token."""
    type(self).has_additional_customized_info = True


def add_facts(result: dict[str, list[Any]], self: Any, reqs: list[Any]) -> dict[str, list[Any]]:
    """One list for each of ``reqs``: its facts if it has ended, else nothing."""
    said = [facts_of(self.tree_cache.report, req) for req in reqs]
    return result | {"laprox": said} if any(said) else result


def facts_of(report: Reporter, req: Any) -> list[dict[str, Any]]:
    state: RequestState | None = getattr(req, "laprox", None)
    if state is None or state.outcome is None or not state.outcome.settled or not req.finished():
        return []
    if is_health_check_generate_req(req):
        return []
    prompt, options = len(req.origin_input_ids), state.options
    said = request_facts(
        state.outcome, prompt, req.cached_tokens, options.return_kept, options.instructions.how
    )
    report.finished(said, state.held)
    return [said]


def say_facts(
    original: Callable[..., None],
    self: Any,
    meta_info: dict[str, Any],
    state: Any,
    customized_info: dict[str, Any],
    index: int,
    finish_reason: dict[str, Any] | None,
) -> None:
    """Puts facts into a reply, in the process that makes it: the scheduler has other things to do.

    What SGLang accumulates itself it takes for one entry per output token, and cuts up in some streams.
    """
    others = dict(customized_info)
    said = others.pop("laprox", None)
    original(self, meta_info, state, others, index, finish_reason)
    if said and said[index]:
        # For `replies`, which sees the chunks of a stream and not what they were made of.
        meta_info["laprox"] = [encode(facts) for facts in said[index]]
        state.obj.laprox_facts = meta_info["laprox"][-1]


STREAMER = "sglang.srt.managers.scheduler_components.output_streamer.SchedulerOutputStreamer."
SEAMS = (
    Seam(STREAMER + "__post_init__", opt_in, HookType.AFTER, ("self",)),
    Seam(
        STREAMER + "build_additional_customized_info",
        add_facts,
        HookType.AFTER,
        ("self", "reqs"),
        "dict[str, list]",
    ),
    Seam(
        "sglang.srt.managers.tokenizer_manager.TokenizerManager.update_request_meta_info",
        say_facts,
        HookType.AROUND,
        ("self", "meta_info", "state", "customized_info", "index", "finish_reason"),
        "None",
    ),
)
