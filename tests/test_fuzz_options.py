"""10,000 requests with options of every kind: each is refused in one line, or planned."""

import random
from collections import Counter
from types import SimpleNamespace
from typing import Any

from laprox_patches.tokenizer.request import check_options, refused
from laprox_sglang.options.refusals import REFUSALS, UNTRIED, UNTRIED_NAMES
from laprox_sglang.options.request import Options
from laprox_sglang.options.server import Config
from laprox_sglang.options.values import LONGEST_MESSAGE, REFUSED, ConfigError, budget_slots, parse_names
from laprox_sglang.views.plan import REASONS, make_plan
from options import draw_name, draw_options

REQUESTS, CONTEXT = 10_000, 4096


def manager(config: Config, preferred: Any = None) -> Any:
    """What checks requests in a server's front."""
    arguments = SimpleNamespace(_laprox=config)
    return SimpleNamespace(server_args=arguments, preferred_sampling_params=preferred, enable_metrics=False)


def fault_of(front: Any, custom_params: Any) -> str | None:
    """What is wrong with a request, in one line; None if it is served."""
    params = {"custom_params": custom_params}
    request = SimpleNamespace(sampling_params=params, text=None, input_ids=[1, 2])
    try:
        check_options(None, front, request, [1, 2])
    except ConfigError as error:
        assert error.fault in REFUSED
        message = str(error)
        assert message.isprintable() and len(message) < 2 * LONGEST_MESSAGE, message
        return message
    return None


def test_every_request_is_refused_in_one_line_or_planned(seed: int, figures: list[str]) -> None:
    draw = random.Random(seed)
    config = Config(request_options=("budget", "enabled"))
    open_to_all = Config(request_options=("budget", "enabled", "keep_prefix", "return_kept"))
    fronts = [manager(config), manager(open_to_all)]
    served = 0
    for number in range(REQUESTS):
        custom_params = draw_options(draw)
        front = fronts[number % 2]
        if fault_of(front, custom_params) is not None:
            continue
        served += 1
        config = front.server_args._laprox
        plan = make_plan(config, Options.of(custom_params), draw.randint(1, CONTEXT), draw.randint(0, 9))
        assert plan.reason in (None, *REASONS)
        assert 0 <= plan.start <= plan.end and 0 <= plan.least <= plan.length
        if plan.reason is None:
            least = config.longest_window + plan.sinks
            assert plan.least <= max(budget_slots(config.budget, plan.length), least), "above the server's"
    counts = sum((Counter(refused(front).to_dict()) for front in fronts), Counter())
    assert served + counts.total() == REQUESTS
    assert served > REQUESTS / 10 and min(counts[fault] for fault in REFUSED[:3]) > REQUESTS / 100
    figures.append(f"{REQUESTS:,} requests with random options: {served:,} served, refused {dict(counts)}")


def test_names_of_every_kind_are_tried_or_refused_in_one_line(seed: int) -> None:
    draw = random.Random(seed)
    flags = [refusal.flag for refusal in (*REFUSALS, *UNTRIED)]
    tried = 0
    for _ in range(1000):
        names = [
            draw.choice((draw_name(draw), *draw.sample(flags, 3), *UNTRIED_NAMES))
            for _ in range(draw.randint(0, 2))
        ]
        try:
            config = Config(untested=parse_names(",".join(names)))
        except ConfigError as error:
            assert str(error).isprintable() and len(str(error)) < 4 * LONGEST_MESSAGE
            assert not {name.strip().removeprefix("--") for name in names} <= set(UNTRIED_NAMES)
        else:
            tried += bool(config.untested)
            assert set(config.untested) <= set(UNTRIED_NAMES)
    assert tried > 100


def test_what_a_server_prefers_is_not_what_a_request_sets() -> None:
    preferred = {"custom_params": {"laprox": {"return_kept": True}}}
    front = manager(Config(), preferred)
    check_options(None, front, SimpleNamespace(sampling_params={}, text=None, input_ids=[1]), [1])
    fault = fault_of(front, preferred["custom_params"])
    assert fault is not None and "--laprox-request-options budget,enabled,keep_prefix,return_kept" in fault
    assert refused(front).to_dict() == {"not_allowed": 1}


def test_no_option_may_be_set_where_none_is_named() -> None:
    front = manager(Config(request_options=()))
    assert fault_of(front, {"laprox": {}}) is None and fault_of(front, {"laprox": None}) is None
    fault = fault_of(front, {"laprox": {"enabled": True}})
    assert fault is not None and "--laprox-request-options enabled" in fault
