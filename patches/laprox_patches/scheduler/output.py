"""Output: a request that has ended carries its facts out, to where its reply is made."""

from collections.abc import Callable

from sglang.srt.managers.utils import is_health_check_generate_req
from sglang.srt.plugins.hook_registry import HookType

from laprox_patches.attached import attach_facts
from laprox_patches.seam import Seam
from laprox_sglang.cache.tree import LaproxCache
from laprox_sglang.ports import OutputStreamer, Req, RequestInFlight, TokenizerManager
from laprox_sglang.report.facts import Cached, Facts, request_facts
from laprox_sglang.report.positions import encode
from laprox_sglang.report.reporter import Reporter
from laprox_sglang.views.state import RequestState


def opt_in(result: None, self: OutputStreamer) -> None:
    """Makes SGLang ask for output of our own, which it does not cut up by token."""
    type(self).has_additional_customized_info = True


def add_facts(result: dict[str, object], self: OutputStreamer, reqs: list[Req]) -> dict[str, object]:
    """One list for each of ``reqs``: its facts if it has ended, else nothing."""
    cache = self.tree_cache
    assert isinstance(cache, LaproxCache)
    said = [facts_to_send(cache.report, req) for req in reqs]
    return result | {"laprox": said} if any(said) else result


def facts_to_send(report: Reporter, req: Req) -> list[Facts]:
    state: RequestState | None = getattr(req, "laprox", None)
    if state is None or state.outcome is None or not state.outcome.settled or not req.finished():
        return []
    if is_health_check_generate_req(req):
        return []
    prompt, options = len(req.origin_input_ids), state.options
    said = request_facts(state.outcome, prompt, Cached.of(req), options.return_kept, options.instructions.how)
    report.finished(said, state.held)
    return [said]


def say_facts(
    original: Callable[..., None],
    self: TokenizerManager,
    meta_info: dict[str, object],
    state: RequestInFlight,
    customized_info: dict[str, list[list[Facts]]],
    index: int,
    finish_reason: dict[str, object] | None,
) -> None:
    """Puts facts into a reply, in the process that makes it: the scheduler has other things to do.

    What SGLang accumulates itself it takes for one entry per output token, and cuts up in some streams.
    """
    others = dict(customized_info)
    said = others.pop("laprox", None)
    original(self, meta_info, state, others, index, finish_reason)
    if said and said[index]:
        # For `replies`, which sees the chunks of a stream and not what they were made of.
        facts = [encode(each) for each in said[index]]
        meta_info["laprox"] = facts
        attach_facts(state.obj, facts[-1])


STREAMER = "sglang.srt.managers.scheduler_components.output_streamer.SchedulerOutputStreamer."
SEAMS = (
    Seam(STREAMER + "__post_init__", opt_in, HookType.AFTER, ("self",), "None"),
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
