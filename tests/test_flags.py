"""LaProx's flags on a command line, and what a server is told by them."""

from argparse import ArgumentParser
from types import SimpleNamespace

import pytest

from laprox_patches.arguments import check_served
from laprox_patches.flags import add_flags, read_flags
from laprox_sglang.options.refusals import UNTRIED_NAMES
from laprox_sglang.options.server import Config
from laprox_sglang.options.values import ConfigError
from laprox_sglang.report.endpoint import check_endpoint, endpoint_of


def read(*flags: str) -> Config | None:
    parser = ArgumentParser()
    add_flags(None, parser)
    assert "--laprox-events" in parser.format_help()
    return read_flags(parser.parse_args(flags))


@pytest.mark.parametrize(
    "flags, config",
    [
        ((), Config()),
        (("--laprox-request-options", "budget"), Config(request_options=("budget",))),
        (
            ("--laprox-request-options", "enabled, return_kept"),
            Config(request_options=("enabled", "return_kept")),
        ),
        (("--laprox-request-options", ""), Config(request_options=())),
        (
            ("--laprox-untested", "--enable-torch-compile, grpc-port"),
            Config(untested=("enable-torch-compile", "grpc-port")),
        ),
        (("--laprox-untested", ""), Config()),
        (("--laprox-events", "tcp://127.0.0.1:5557"), Config(events="tcp://127.0.0.1:5557")),
        (
            ("--laprox-events", "tcp://0.0.0.0:5557", "--laprox-events-public"),
            Config(events="tcp://0.0.0.0:5557", events_public=True),
        ),
    ],
)
def test_flags_are_read(flags, config) -> None:
    assert read("--enable-laprox", *flags) == config
    # What the processes are told, and what a program gives as a list, is the same.
    assert Config.from_environment({"LAPROX_CONFIG": config.to_json()}) == config
    assert Config(request_options=list(config.request_options)).request_options == config.request_options


@pytest.mark.parametrize("name", ["window", "budgets", "a\nb", "", "x" * 10**5])
def test_what_is_no_option_of_a_request_is_refused(name) -> None:
    with pytest.raises(ConfigError, match=r"request-options .* is no option") as error:
        read("--enable-laprox", "--laprox-request-options", f"budget,{name}")
    assert str(error.value).isprintable() and len(str(error.value)) < 400


@pytest.mark.parametrize("name", ["enable-torch-compilee", "budget", "a\nb", "", "x" * 10**5])
def test_what_was_not_refused_cannot_be_tried(name) -> None:
    with pytest.raises(ConfigError, match=r"untested .* is no flag that was not tried; what can be") as error:
        read("--enable-laprox", "--laprox-untested", f"enable-torch-compile,{name}")
    assert str(error.value).isprintable() and len(str(error.value)) < 600
    assert all(known in str(error.value) for known in UNTRIED_NAMES)


def test_flags_without_laprox_are_refused() -> None:
    for flags in (
        ("--laprox-events-public",),
        ("--laprox-untested", "enable-torch-compile"),
        ("--laprox-request-options", ""),
    ):
        with pytest.raises(ConfigError, match=f"{flags[0]} without --enable-laprox"):
            read(*flags)
    assert read() is None


def test_the_endpoint_of_every_replica_is_looked_at(tmp_path) -> None:
    endpoint = f"ipc://{tmp_path}/events"
    (tmp_path / "events_dp2").write_text("somebody's")
    with pytest.raises(ConfigError, match="events_dp2 is there and is no socket"):
        check_served(Config(events=endpoint), SimpleNamespace(dp_size=3), None)
    # The third would have port 65536.
    with pytest.raises(ConfigError, match=r"tcp://127\.0\.0\.1:65536 is no IP address and port"):
        check_served(Config(events="tcp://127.0.0.1:65534"), SimpleNamespace(dp_size=3), None)


@pytest.mark.parametrize(
    ("endpoint", "endpoints"),
    [
        ("ipc:///tmp/x", ["ipc:///tmp/x", "ipc:///tmp/x_dp1", "ipc:///tmp/x_dp2"]),
        ("tcp://[::1]:5557", ["tcp://[::1]:5557", "tcp://[::1]:5558", "tcp://[::1]:5559"]),
    ],
)
def test_every_replica_has_an_endpoint_of_its_own(endpoint, endpoints) -> None:
    assert [endpoint_of(endpoint, replica) for replica in range(3)] == endpoints


def test_an_endpoint_is_looked_at_before_the_model(monkeypatch) -> None:
    monkeypatch.setattr("laprox_patches.arguments.check_arguments", lambda args, untested: None)
    with pytest.raises(ConfigError, match="--laprox-events-public"):
        check_served(Config(events="tcp://0.0.0.0:5557"), SimpleNamespace(dp_size=1), None)
    with pytest.raises(ConfigError, match="give tcp://127"):
        check_endpoint("tcp://", False)
