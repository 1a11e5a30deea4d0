"""Options of a server and of a request: what is taken, what is refused, and in which words."""

import argparse
import math
import re

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from laprox_patches.flags import add_flags, read_flags
from laprox_sglang.options.request import Options
from laprox_sglang.options.server import ENVIRONMENT, Config
from laprox_sglang.options.values import (
    FEWEST_SLOTS,
    LARGEST,
    LONGEST_MESSAGE,
    SYSTEM,
    ConfigError,
    budget_slots,
    check_budget,
    check_keep_prefix,
    parse_budget,
    parse_tokens,
)
from laprox_sglang.scorers import SCORERS, SEE_BUDGET
from laprox_sglang.scorers.allocators import Allocation
from laprox_sglang.scorers.pooling import Pooling

BAD_BUDGETS = [0, -1, -0.1, 0.0, 1.5, 2.0, math.nan, math.inf, -math.inf, True, False, "0.1", None, [0.1]]


def one_line(error: pytest.ExceptionInfo) -> str:
    message = str(error.value)
    assert message and "\n" not in message
    return message


@pytest.mark.parametrize(
    "untested", [("budget",), (None,), (5,), ("",), ("enable_torch_compile",), ("---enable-torch-compile",)]
)
def test_what_is_no_untried_flag_is_refused(untested):
    with pytest.raises(ConfigError, match="is no flag that was not tried; what can be tried is ") as error:
        Config(untested=untested)
    one_line(error)


def test_untried_flags_are_named_with_and_without_dashes():
    names = ["--enable-torch-compile", "grpc-port", "enable-torch-compile"]
    assert Config(untested=names).untested == ("enable-torch-compile", "grpc-port")
    assert Config.from_environment({ENVIRONMENT: '{"untested": ["--grpc-port"]}'}).untested == ("grpc-port",)


@pytest.mark.parametrize("budget", BAD_BUDGETS, ids=repr)
def test_bad_budget_is_refused(budget):
    with pytest.raises(ConfigError) as error:
        check_budget(budget)
    assert repr(budget) in one_line(error)
    with pytest.raises(ConfigError):
        Config(budget=budget)


@pytest.mark.parametrize("budget", [1e-9, 0.2, 1.0, 1, 2, 10**6])
def test_good_budget_is_taken(budget):
    assert Config(budget=budget).budget == budget


def test_a_budget_is_read_as_it_is_written():
    for text, value in {"1": 1, "1.0": 1.0, "2": 2, "0.07": 0.07, "1e-2": 0.01, " 3 ": 3}.items():
        parsed = parse_budget(text)
        assert parsed == value and type(parsed) is type(value)


@pytest.mark.parametrize("text", ["", "ten", "10%", "0,1", "1/2", "0x10"])
def test_a_budget_that_is_no_number_is_refused(text):
    with pytest.raises(ConfigError) as error:
        parse_budget(text)
    assert repr(text) in one_line(error)


@pytest.mark.parametrize("text", ["nan", "inf", "-inf", "2.0", "0", "-3", "1.0000001"])
def test_a_number_out_of_range_parses_and_is_then_refused(text):
    with pytest.raises(ConfigError):
        check_budget(parse_budget(text))


@pytest.mark.parametrize(
    ("budget", "length", "slots"),
    [
        (0.07, 1100, 77),
        (0.29, 1100, 319),
        (0.1, 1001, 101),
        (0.5, 129, 65),
        (1, 1000, 1000),
        (1.0, 1000, 1000),
        (2, 1000, 2),
        (512, 1000, 512),
        (2000, 1000, 1000),
        # Of a short prompt no fraction is less than 64 slots, or all of it.
        (0.1, 640, 64),
        (0.1, 641, 65),
        (0.1, 300, 64),
        (1e-9, 1000, 64),
        (0.1, 64, 64),
        (0.1, 63, 63),
        (0.1, 0, 0),
        # A number is what it says.
        (63, 1000, 63),
        (63, 62, 62),
    ],
)
def test_budget_slots(budget, length, slots):
    assert budget_slots(budget, length) == slots


@given(st.integers(FEWEST_SLOTS + 1, 200_000))
def test_all_but_one_token_is_all_but_one_slot(length):
    assert budget_slots((length - 1) / length, length) == length - 1


@given(st.integers(0, 10**5), st.integers(1, 10**5), st.integers(0, 10**5))
def test_slots_are_the_smallest_count_that_grants_the_fraction(numerator, denominator, length):
    fraction = min(1.0, (numerator + 1) / denominator)
    slots = budget_slots(fraction, length)
    assert 0 <= slots <= length
    # Whole slots, up to the rounding of a double times a length.
    assert slots >= fraction * length - 1e-5 and slots >= min(length, FEWEST_SLOTS)
    assert slots - 1 < fraction * length or slots <= FEWEST_SLOTS


@pytest.mark.parametrize(
    ("options", "flag"),
    [
        ({"window": 0}, "window"),
        ({"window": -1}, "window"),
        ({"window": 1025}, "window"),
        ({"window": True}, "window"),
        ({"window": "wide"}, 'give "auto" or a number of tokens, 1 to 1024'),
        ({"pooling_kernel": 0}, "pooling-kernel"),
        ({"pooling_kernel": 4}, "pooling-kernel"),
        ({"pooling_kernel": -3}, "pooling-kernel"),
        ({"sink_tokens": -1}, "sink-tokens"),
        ({"keep_prefix": -1}, "keep-prefix"),
        ({"min_tokens": 28}, "min-tokens"),
        ({"min_tokens": 0}, "min-tokens"),
        ({"window": 252}, "min-tokens"),
        ({"sink_tokens": 232}, "min-tokens"),
    ],
)
def test_bad_length_is_refused(options, flag):
    with pytest.raises(ConfigError) as error:
        Config(**options)
    assert flag in one_line(error)


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ({"scorer": "snapvk"}, "scorer 'snapvk' is not known; give one of laprox, "),
        ({"scorer": "no_such.module:f"}, "cannot be imported: ModuleNotFoundError"),
        ({"scorer": "os:sep"}, "no function of a Prompt"),
        ({"scorer": "x" * 10**5}, "scorer 'xxx"),
        ({"scorer": None}, "scorer None must be a name"),
        ({"allocator": "head"}, "allocator 'head' is not known; give one of model, layer, uniform"),
        ({"allocator": ["layer"]}, "must be a name"),
        ({"allocator": "uniform", "floor": 0.5}, "floor 0.5 with allocator uniform does nothing"),
        ({"floor": 1.5}, "floor 1.5 must be a share"),
        ({"floor": -0.5}, "floor -0.5 must be a share"),
        ({"floor": math.nan}, "floor nan must be a share"),
        ({"floor": True}, "floor True must be a share"),
        ({"floor": "0.5"}, "floor '0.5' must be a share"),
        ({"pooling": "mean"}, "pooling 'mean' is not known; give one of average, parabola, max, chunk"),
        ({"pooling": "max", "pooling_kernel": 8}, "pooling-kernel 8 must be odd: max slides"),
        ({"pooling": "chunk", "pooling_kernel": 0}, "pooling-kernel 0"),
        ({"scorer": "keydiff", "pooling": "chunk"}, "does nothing, as scorer keydiff"),
        ({"scorer": "criticalkv", "pooling_kernel": 7}, "does nothing, as scorer criticalkv"),
    ],
    ids=lambda value: str(value)[:40],
)
def test_what_is_no_method_is_refused(options, said):
    with pytest.raises(ConfigError, match=re.escape(said)) as error:
        Config(**options)
    assert len(one_line(error)) < LONGEST_MESSAGE + 50


def test_a_method_is_what_its_names_say():
    method = Config().method
    assert method == (SCORERS["laprox"], Pooling("parabola", 17), Allocation("layer", 0.2)) and method.fused
    paper = Config(allocator="model", pooling="average", pooling_kernel=7).method
    assert paper[1:] == (Pooling("average", 7), Allocation("model", 0.0)) and paper.fused
    assert not Config(pooling="max").method.fused and not Config(scorer="snapkv").method.fused
    ada = Config(scorer="snapkv", allocator="layer", pooling="chunk", pooling_kernel=10).method
    assert ada == (SCORERS["snapkv"], Pooling("chunk", 10), Allocation("layer", 0.2))
    assert Config(allocator="layer", floor=0.5).method.allocation == ("layer", 0.5)
    assert (
        Config(allocator="model", floor=1).method.allocation == Config(allocator="uniform").method.allocation
    )
    assert Config(scorer="keydiff", pooling_kernel=1).method.pooling.width == 1


def from_flags(*flags):
    parser = argparse.ArgumentParser()
    add_flags(None, parser)
    return read_flags(parser.parse_args(flags))


def test_every_option_is_a_flag():
    assert from_flags() is None
    assert from_flags("--enable-laprox") == Config()
    given = "--laprox-scorer snapkv --laprox-allocator layer --laprox-floor 0.3 --laprox-pooling chunk "
    given += "--laprox-pooling-kernel 10 --laprox-window 16 --laprox-budget 0.1 --laprox-keep-prefix 5"
    expected = Config(
        scorer="snapkv", allocator="layer", floor=0.3, pooling="chunk", pooling_kernel=10, window=16,
        budget=0.1, keep_prefix=5,
    )  # fmt: skip
    assert from_flags("--enable-laprox", *given.split()) == expected
    with pytest.raises(ConfigError, match="floor 'half' is not a number; give a share"):
        from_flags("--enable-laprox", "--laprox-floor", "half")
    with pytest.raises(ConfigError, match="--laprox-scorer without --enable-laprox"):
        from_flags("--laprox-scorer", "snapkv")


def test_lengths_at_their_limits_are_taken():
    Config(min_tokens=37)
    Config(window=251, sink_tokens=4)
    Config(window=1, sink_tokens=0, min_tokens=2, pooling_kernel=1)


def test_unknown_option_is_refused():
    with pytest.raises(TypeError):
        Config(budgets=0.1)
    with pytest.raises(ConfigError, match="budgets"):
        Config.from_environment({ENVIRONMENT: '{"budgets": 0.1}'})


def test_configuration_travels_through_the_environment():
    for config in (
        Config(),
        Config(budget=1),
        Config(budget=1.0),
        Config(budget=0.07, window=8, keep_prefix=5),
        Config(window="auto"),
        Config(scorer="snapkv", allocator="layer", floor=0.5, pooling="chunk", pooling_kernel=10),
        Config(keep_prefix=SYSTEM),
    ):
        read = Config.from_environment({ENVIRONMENT: config.to_json()})
        assert read == config and type(read.budget) is type(config.budget)
    assert Config.from_environment({}) is None
    assert Config.from_environment({ENVIRONMENT: "{}"}) == Config()


@pytest.mark.parametrize(
    "text",
    ["", "0.1", "null", "[]", "{", "{'budget': 0.1}", '{"budget": "0.1"}', '{"budget": 0}', '{"budget": 1.5}',
     '{"untested": ["page-size"]}', '{"untested": "enable-torch-compile"}', '{"untested": [1]}',
     '{"keep_prefix": "5"}', '{"keep_prefix": -1}',
     '{"floor": "0.5"}', '{"scorer": "snapvk"}', '{"scorer": null}', '{"allocator": "uniform", "floor": 1}',
     '{"budget": NaN}', '{"budget": true}', '{"budget": null}', '{"window": 1.5}', '{"window": 300}'],
)  # fmt: skip
def test_malformed_environment_is_refused_and_named(text):
    with pytest.raises(ConfigError) as error:
        Config.from_environment({ENVIRONMENT: text})
    assert ENVIRONMENT in one_line(error)


def test_options_of_a_request():
    assert (
        Options.of(None)
        == Options.of({})
        == Options.of({"other": 1})
        == Options.of({"laprox": None})
        == Options()
    )
    given = {"enabled": False, "budget": 0.1, "keep_prefix": 3, "return_kept": True}
    assert Options.of({"laprox": given, "__req__": object()}) == Options(**given)
    assert type(Options.of({"laprox": {"budget": 1}}).budget) is int
    assert type(Options.of({"laprox": {"budget": 1.0}}).budget) is float


@pytest.mark.parametrize(
    "given",
    [0.1, "off", [], True, {"budgets": 0.1}, {"enabled": "no"}, {"enabled": 0}, {"enabled": None},
     {"budget": "0.1"}, {"budget": True}, {"budget": [0.1]}, {"keep_prefix": 1.5}, {"keep_prefix": True},
     {"return_kept": 1}, {"window": 8}],
    ids=repr,
)  # fmt: skip
def test_malformed_options_are_refused(given):
    with pytest.raises(ConfigError, match=re.escape("custom_params.laprox")) as error:
        Options.of({"laprox": given})
    one_line(error)


@pytest.mark.parametrize(
    "key", ["a\nINFO: forged", "\r\x1b[2K", "\u2028\u2029\x85\x00", "\u202eevil", "x" * 10**5, "\n" * 10**5]
)
def test_what_a_client_writes_stays_on_one_short_line(key):
    with pytest.raises(ConfigError, match=re.escape("custom_params.laprox")) as error:
        Options.of({"laprox": {key: 1}})
    message = str(error.value)
    assert message.isprintable() and len(message.splitlines()) == 1
    assert len(message) < LONGEST_MESSAGE + 50


@pytest.mark.parametrize("custom_params", ["laprox", [1], 5], ids=repr)
def test_custom_params_that_are_no_object_are_refused(custom_params):
    with pytest.raises(ConfigError, match="custom_params"):
        Options.of(custom_params)


@pytest.mark.parametrize("budget", [0, -1, -0.1, 1.5, 2.0, math.nan, math.inf])
def test_bad_budget_of_a_request_is_refused(budget):
    with pytest.raises(ConfigError):
        Options.of({"laprox": {"budget": budget}}).check(Config())


@pytest.mark.parametrize(
    ("server", "asked", "fits"),
    [
        (0.2, 0.2, True), (0.2, 0.1, True), (0.2, 0.21, False), (0.2, 1, False), (0.2, 1.0, False),
        (300, 300, True), (300, 299, True), (300, 301, False),
        # Which is more depends on the prompt: make_plan takes the smaller.
        (0.2, 200, True), (0.2, 10**6, True), (300, 0.3, True), (300, 1, True), (300, 1.0, True),
        (1, 1.0, True), (1.0, 1, True), (1, 5000, True), (2000, 1.0, True),
    ],
)  # fmt: skip
def test_a_request_gets_at_most_what_the_server_has(server, asked, fits):
    options = Options(budget=asked)
    if fits:
        options.check(Config(budget=server))
        return
    with pytest.raises(
        ConfigError, match=re.escape(f"budget {asked} is above the server's {server}")
    ) as error:
        options.check(Config(budget=server))
    one_line(error)


@pytest.mark.parametrize("most", [budget for budget in BAD_BUDGETS if budget is not None], ids=repr)
def test_bad_budget_max_is_refused(most):
    with pytest.raises(ConfigError) as error:
        Config(budget=0.1, budget_max=most)
    assert one_line(error).startswith("budget-max ") and repr(most) in str(error.value)


@pytest.mark.parametrize(
    ("budget", "most", "elastic"),
    [(0.2, None, False), (0.2, 0.2, False), (1, 1.0, False), (300, 300, False), (0.2, 0.3, True),
     (0.2, 300, True), (300, 0.2, True), (0.1, 1, True), (300, 301, True)],
)  # fmt: skip
def test_views_shrink_where_two_budgets_were_given(budget, most, elastic):
    config = Config(budget=budget, budget_max=most)
    assert config.elastic is elastic and config.most == (budget if most is None else most)
    assert Config.from_environment({ENVIRONMENT: config.to_json()}) == config


@pytest.mark.parametrize(("budget", "most"), [(0.2, 0.1), (300, 299), (1, 0.5)])
def test_a_budget_max_below_the_budget_is_refused(budget, most):
    with pytest.raises(ConfigError, match=re.escape(f"budget-max {most} is below budget {budget}")) as error:
        Config(budget=budget, budget_max=most)
    one_line(error)


@pytest.mark.parametrize("scorer", SCORERS)
def test_a_scorer_whose_scores_depend_on_the_budget_has_one_budget(scorer):
    Config(scorer=scorer, budget=0.2, budget_max=0.2)
    if scorer not in SEE_BUDGET:
        Config(scorer=scorer, budget=0.2, budget_max=0.3)
        return
    with pytest.raises(ConfigError, match=f"budget-max does not go together with scorer {scorer}") as error:
        Config(scorer=scorer, budget=0.2, budget_max=0.3)
    one_line(error)


def test_a_request_may_ask_for_what_there_may_be_room_for():
    config = Config(budget=0.1, budget_max=0.3)
    Options(budget=0.3).check(config)
    with pytest.raises(ConfigError, match=r"budget 0\.31 is above the server's 0\.3.*-budget-max$") as error:
        Options(budget=0.31).check(config)
    one_line(error)


BAD_PREFIXES = [-1, LARGEST + 1, "", "System", "4", "all\n", True, 1.0, None, [1], "x" * 10**5]


@pytest.mark.parametrize("keep", BAD_PREFIXES, ids=lambda keep: repr(keep)[:20])
def test_bad_keep_prefix_is_refused(keep):
    with pytest.raises(ConfigError, match="keep-prefix") as error:
        check_keep_prefix(keep)
    assert SYSTEM in one_line(error) and len(str(error.value)) < LONGEST_MESSAGE + 100
    with pytest.raises(ConfigError):
        Config(keep_prefix=keep)


@pytest.mark.parametrize("keep", [-1, "4", "users"])
def test_bad_keep_prefix_of_a_request_is_refused(keep):
    with pytest.raises(ConfigError, match=f"keep-prefix {keep!r}"):
        Options.of({"laprox": {"keep_prefix": keep}}).check(Config())


def test_a_keep_prefix_is_read_as_it_is_written():
    for text, keep in {"0": 0, "12": 12, "system": SYSTEM, "-1": "-1", "1.5": "1.5", "٣": "٣"}.items():
        parsed = parse_tokens(text)
        assert parsed == keep and type(parsed) is type(keep)


@pytest.mark.parametrize(
    ("server", "asked", "keep", "dense"),
    [
        (SYSTEM, None, SYSTEM, 0),
        (SYSTEM, 7, 7, 7),
        (SYSTEM, 0, 0, 0),
        (5, None, 5, 5),
        (5, 0, 0, 0),
        (5, 7, 7, 7),
        # The template has the last word on what it comes to; until then it is nothing.
        (5, SYSTEM, SYSTEM, 0),
    ],
)
def test_what_stays_dense(server, asked, keep, dense):
    config, options = Config(keep_prefix=server), Options(keep_prefix=asked)
    options.check(config)
    assert options.keep_prefix_or(config) == keep and options.dense_tokens(config) == dense


def test_configuration_is_frozen():
    with pytest.raises(AttributeError):
        Config().budget = 0.5
    assert issubclass(ConfigError, ValueError) and not issubclass(ConfigError, msgspec.MsgspecError)
