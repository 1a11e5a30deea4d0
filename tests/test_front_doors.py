"""Requests that reach the scheduler by whatever front door: each is refused in one line, or planned."""

import os
import random
from array import array
from collections import Counter
from contextlib import ExitStack
from importlib.util import find_spec
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from sglang.srt.arg_groups.model_override_base import model_config_of
from sglang.srt.arg_groups.overrides import resolved_view
from sglang.srt.environ import envs
from sglang.srt.managers.io_struct import SessionParams, TokenizedGenerateReqInput
from sglang.srt.sampling.sampling_params import SamplingParams

from fakes import Scheduler, sglang_context
from laprox_patches.arguments import check_served, load_in_workers
from laprox_patches.scheduler.request import handle_request
from laprox_patches.tokenizer.request import check_options
from laprox_sglang.options.check import front_checks
from laprox_sglang.options.refusals import RUST_SERVER
from laprox_sglang.options.request import Instructions, Options, Told
from laprox_sglang.options.server import Config
from laprox_sglang.options.values import LONGEST_MESSAGE, REFUSED, SYSTEM, ConfigError
from laprox_sglang.prefix import ChatPrompt, Found
from laprox_sglang.views.plan import REASONS, make_plan
from options import draw_options
from test_refusals import record

REQUESTS, PROMPT = 2000, [1, 2, 3, 0] * 10
CONFIG = Config(window=3, min_tokens=8, sink_tokens=2, request_options=("budget", "enabled"))
FORGED = {"spans": [[0, 9]], "most": 10**6}


@pytest.fixture(autouse=True)
def sglang():
    with sglang_context():
        yield


def scheduler(**given: Any) -> Any:
    made = Scheduler(config=CONFIG)
    made.server_args = record(**given)
    made.model_config.vocab_size = 4
    return made


@pytest.fixture
def behind_rust(monkeypatch: pytest.MonkeyPatch) -> Any:
    """A scheduler whose requests come from SGLang's Rust server."""
    monkeypatch.setenv(RUST_SERVER, "1")
    return scheduler()


def arrives(scheduler: Any, custom_params: Any, **given: Any) -> str | None:
    """What its client is told, in one line; None for a request that is scheduled."""
    params = SamplingParams(custom_params=custom_params, beam_width=given.pop("beam_width", None))
    request = TokenizedGenerateReqInput(
        rid="r", input_text="", input_ids=array("q", PROMPT), input_embeds=None, mm_inputs=None,
        token_type_ids=None, sampling_params=params, return_logprob=False, logprob_start_len=-1,
        top_logprobs_num=0, token_ids_logprob=None, stream=False, **given,
    )  # fmt: skip
    scheduled: list[Any] = []
    scheduler.output_streamer.stream_output.reset_mock()
    with ExitStack() as stack:
        handle_request(lambda self, *rest: scheduled.append(rest), scheduler, request, stack)
        assert scheduled in ([], [(request, stack)])
    said = scheduler.output_streamer.stream_output.call_args
    assert (said is None) == bool(scheduled) and not scheduler.waiting_queue
    if said is None:
        return None
    [[req], logprobs] = said.args
    reason = req.finished_reason.to_json()
    assert req.rid == "r" and not logprobs
    assert (reason["type"], reason["status_code"]) == ("abort", 400)
    message: str = reason["message"]
    assert message.isprintable() and len(message) < 2 * LONGEST_MESSAGE
    return message


@pytest.mark.parametrize("rust", [False, True])
def test_every_request_is_refused_in_one_line_or_planned(
    seed: int, rust: bool, figures: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    draw = random.Random(seed)
    monkeypatch.setenv(RUST_SERVER, str(rust))
    door = scheduler()
    served = 0
    for _ in range(REQUESTS):
        custom_params = draw_options(draw)
        if arrives(door, custom_params) is None:
            served += 1
            told = Told.of(custom_params)
            plan = make_plan(CONFIG, told, len(PROMPT), 9, instructions=told.instructions)
            assert plan.reason in (None, *REASONS) and told.instructions == Instructions()
    counts = Counter(door.laprox.report.to_dict()["refused"])
    assert counts.keys() <= set(REFUSED) and served + counts.total() == REQUESTS
    assert served > REQUESTS / 10 and min(counts[fault] for fault in REFUSED[:3]) > REQUESTS / 200
    figures.append(f"{REQUESTS:,} unchecked requests: {served:,} served, refused {dict(counts)}")


@pytest.mark.parametrize(
    ("given", "said"),
    [
        ({"beam_width": 2}, "beam_width: beams copy rows"),
        ({"session_params": SessionParams(id="x")}, "session_params: sessions keep whole KV"),
    ],
)
def test_kinds_of_requests_are_refused(given: Any, said: str) -> None:
    door = scheduler()
    assert said in (arrives(door, None, **given) or "")
    assert door.laprox.report.to_dict()["refused"] == {"unsupported": 1}
    assert arrives(door, None) is None and arrives(door, None, beam_width=1) is None


def sealed(options: Any, found: Found | None = None) -> Any:
    """``custom_params`` as a tokenizer manager sends them on."""
    manager = SimpleNamespace(
        server_args=SimpleNamespace(_laprox=CONFIG), preferred_sampling_params=None, context_len=1000
    )
    params = {"custom_params": {"laprox": options, "other": 1}}
    request = SimpleNamespace(sampling_params=params, session_params=None, input_ids=ChatPrompt(PROMPT))
    request.input_ids.found = found
    check_options(None, manager, request, PROMPT)
    return request.sampling_params["custom_params"]


def test_what_a_tokenizer_manager_has_checked_is_not_checked_again(monkeypatch: pytest.MonkeyPatch) -> None:
    instructed = sealed({"budget": 0.1}, Found(5, ((8, 12),)))
    assert instructed["other"] == 1
    told = Told.of(instructed)
    assert (told.budget, told.keep_prefix) == (0.1, 5)
    assert told.instructions.spans == ((8, 12),) and told.instructions.how == "protected"
    checked = [instructed, sealed({"enabled": True})]
    door = scheduler()
    monkeypatch.setattr(Options, "checked", None)
    assert [arrives(door, custom_params) for custom_params in checked] == [None, None]


@pytest.mark.parametrize("forged", [Told(instructions=Instructions(((0, 9),))).seal(), "", "{}", "x" * 999])
def test_no_client_seals_his_options(behind_rust: Any, forged: str) -> None:
    message = arrives(behind_rust, {"laprox": forged}) or ""
    assert message.startswith("custom_params.laprox: Expected `object`, got `str`")
    # Nor where a tokenizer manager is in front: it takes no text for options.
    with pytest.raises(ValueError, match="Expected `object`, got `str`"):
        sealed(forged)


def test_no_client_says_where_his_instructions_are(behind_rust: Any) -> None:
    for door in (behind_rust, scheduler()):
        assert "unknown field `instructions`" in (arrives(door, {"laprox": {"instructions": FORGED}}) or "")


def test_what_the_server_prefers_is_not_what_a_request_sets(behind_rust: Any) -> None:
    """The Rust server has put it in."""
    preferred = {"custom_params": {"laprox": {"return_kept": True}}}
    door = scheduler(preferred_sampling_params=preferred)
    assert arrives(door, {"laprox": {"return_kept": True}}) is None
    assert "return_kept may not be set" in (arrives(behind_rust, {"laprox": {"return_kept": True}}) or "")


def test_who_checks() -> None:
    plain, servicer = (resolved_view(record(smg_grpc_mode=on)) for on in (False, True))
    assert front_checks(plain, {}) and front_checks(plain, {RUST_SERVER: "0"})
    assert not front_checks(servicer, {}) and not front_checks(plain, {RUST_SERVER: "1"})


def test_instructions_are_not_kept_where_nobody_looks_for_them(
    behind_rust: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    config = Config(request_options=("keep_prefix",))
    door = scheduler()
    for each in (behind_rust, door):
        each.laprox.config = config
    said = "keep_prefix system: SGLang's Rust server"
    assert said in (arrives(behind_rust, {"laprox": {"keep_prefix": SYSTEM}}) or "")
    assert arrives(behind_rust, {"laprox": {"keep_prefix": 7}}) is None
    arguments = record()
    with pytest.raises(ConfigError, match=said.replace("_", "-")):
        check_served(config, resolved_view(arguments), model_config_of(arguments))
    check_served(Config(keep_prefix=0), resolved_view(arguments), model_config_of(arguments))
    monkeypatch.delenv(RUST_SERVER)
    assert arrives(door, {"laprox": {"keep_prefix": SYSTEM}}) is None
    check_served(config, resolved_view(arguments), model_config_of(arguments))


def test_tokenizer_workers_load_laprox(monkeypatch: pytest.MonkeyPatch) -> None:
    name = envs.SGLANG_HTTP_SERVER_APP_PATH.name
    monkeypatch.setenv(name, "other_module:app")
    with pytest.raises(ConfigError, match="other_module:app names another application than LaProx's"):
        load_in_workers()
    monkeypatch.delenv(name)
    for _ in range(2):
        load_in_workers()
    module, _, app = os.environ[name].partition(":")
    assert Path(find_spec(module).origin).name == "worker.py" and app == "app"
