"""``laprox doctor``: each finding from its cause. All of it at once runs in test_server_cli."""

import importlib.metadata
import json
import subprocess
import sys
from importlib.metadata import EntryPoint, PackageNotFoundError
from typing import Protocol

import msgspec
import pytest
import torch
from sglang.srt.arg_groups.model_override_base import model_config_of
from sglang.srt.arg_groups.overrides import declare_resolution, resolved_view
from sglang.srt.server_args import ServerArgs

import laprox_kernels as kernels
from laprox_patches import arguments, seams, version
from laprox_patches.attached import attach_config
from laprox_patches.seam import Seam
from laprox_sglang import ports
from laprox_sglang.options.server import ENVIRONMENT, Config
from laprox_sglang.ports import PORTS
from laprox_tools.__main__ import main
from laprox_tools.doctor import command, dry_run, installation, machine
from laprox_tools.doctor.finding import Area, Finding
from laprox_tools.needle import MODEL_PATH


def whole(finding: Finding) -> Finding:
    """One line of reason, and something to do wherever it is not ok."""
    assert finding.reason and "\n" not in finding.reason + finding.fix
    assert bool(finding.fix) == (finding.status != "ok")
    return finding


def test_this_machine_and_installation_are_in_order():
    findings = [whole(x) for x in (*machine.check_machine(), *installation.check_installation({}))]
    # Whatever card there may be.
    assert not [x for x in findings if x.status == "error" and not x.name.startswith("GPU")]
    assert installation.served() == version.SERVED
    assert len({(finding.area, finding.name) for finding in findings}) == len(findings)


@pytest.fixture
def packages(monkeypatch) -> dict[str, str]:
    """Versions of packages that stand for the installed ones; those not named are missing."""
    there: dict[str, str] = {}

    def version(name):
        if name not in there:
            raise PackageNotFoundError(name)
        return there[name]

    monkeypatch.setattr(installation, "version", version)
    return there


def test_another_sglang_and_none(packages):
    missing = whole(installation.sglang())
    assert (
        missing.status == "error" and "not installed" in missing.reason and version.SERVED in missing.reason
    )
    packages["sglang"] = "0.5.20"
    other = whole(installation.sglang())
    assert other.status == "error" and other.reason == f"0.5.20 is not served, only {version.SERVED}"
    packages["sglang"] = version.SERVED
    assert whole(installation.sglang()).status == "ok"


def test_without_sglang_the_rest_is_still_looked_at(monkeypatch, capsys):
    monkeypatch.setattr(command, "found", lambda package: None)
    monkeypatch.setattr(
        installation, "version", lambda name: (_ for _ in ()).throw(PackageNotFoundError(name))
    )
    monkeypatch.setattr(command.dry_run, "__name__", "no_such_module")
    assert main(["doctor", "--json"]) == 1
    findings = json.loads(capsys.readouterr().out)["findings"]
    by_name = {finding["name"]: finding for finding in findings}
    assert by_name["sglang"]["status"] == by_name["laprox-sglang"]["status"] == "error"
    assert by_name["start"]["reason"].startswith("not tried")
    assert by_name["Python"]["status"] == "ok"


def test_packages_are_compared_with_what_sglang_pins(packages):
    packages |= {"torch": "2.11.0+cu130", "triton": "3.8.0"}
    assert installation.pinned("sglang")["torch"] == importlib.metadata.version("torch").partition("+")[0]
    other = whole(installation.pinned_package("torch", "2.14.1"))
    assert other.status == "warning" and "2.11.0+cu130; SGLang pins 2.14.1" in other.reason
    assert whole(installation.pinned_package("torch", "2.11.0")).status == "ok"
    assert whole(installation.pinned_package("triton", None)).status == "ok"
    assert whole(installation.pinned_package("sglang-kernel", "0.4.10")).status == "warning"
    # What a pin is of is named in many ways.
    assert "flashinfer-python" in installation.pinned("sglang")


def test_entry_points(monkeypatch):
    monkeypatch.setattr(installation, "entry_points", lambda group: [])
    missing = whole(installation.entry_point(installation.PLUGINS, "laprox"))
    assert missing.status == "error" and "would not find it" in missing.reason
    beside = [EntryPoint(name, "a:b", "g") for name in ("laprox", "other")]
    monkeypatch.setattr(installation, "entry_points", lambda group: beside)
    assert whole(installation.entry_point(installation.PLUGINS, "laprox")).status == "ok"
    assert whole(installation.entry_point(installation.PLATFORMS, "laprox")).status == "warning"


@pytest.mark.parametrize(
    ("value", "status"),
    [
        (None, "ok"),
        ("", "ok"),
        ("laprox, laprox_reference_cpu", "ok"),
        ("laprox", "warning"),
        ("x,y", "error"),
    ],
)
def test_the_filter_of_plugins(value, status):
    environ = {} if value is None else {"SGLANG_PLUGINS": value}
    assert whole(installation.plugin_filter(environ)).status == status


@pytest.mark.parametrize(
    ("value", "status"), [(None, "ok"), ("{}", "ok"), ('{"budget": 7.5}', "error"), ("x", "error")]
)
def test_the_configuration_in_the_environment(value, status):
    environ = {} if value is None else {ENVIRONMENT: value}
    assert whole(installation.configuration(environ)).status == status


def gpu(monkeypatch, capability=(9, 0), shared=227, free=70, cuda="13.0", available=True, smi="H100, 580.1"):
    """The findings of a machine with such a card."""
    monkeypatch.setattr(torch.version, "cuda", cuda)
    monkeypatch.setattr(torch.cuda, "is_available", lambda: available)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 1)
    monkeypatch.setattr(torch.cuda, "get_device_name", lambda device: "a card")
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda device: capability)
    monkeypatch.setattr(torch.cuda, "mem_get_info", lambda device: (free * 2**30, 79 * 2**30))
    monkeypatch.setattr("laprox_kernels.gpu.support.shared_memory", lambda device: shared * 1024)
    monkeypatch.setattr(machine, "nvidia_smi", lambda fields: smi)
    kernels.dispatch.on_gpu.cache_clear()
    try:
        return [whole(finding) for finding in machine.gpu()]
    finally:
        kernels.dispatch.on_gpu.cache_clear()


def test_cards(monkeypatch):
    card, memory = gpu(monkeypatch, free=78)
    assert card.status == memory.status == "ok" and "580.1" in card.reason and "227 KB" in card.reason
    assert [finding.status for finding in gpu(monkeypatch, free=60)] == ["ok", "warning"]
    [small] = gpu(monkeypatch, shared=99)
    assert small.status == "error" and "99 KB of shared memory per block, of 163 needed" in small.reason
    [old] = gpu(monkeypatch, capability=(7, 5))
    assert old.status == "error" and "sm_80" in old.reason
    [driver] = gpu(monkeypatch, available=False)
    assert driver.status == "error" and "nvidia-smi sees H100, 580.1, but PyTorch" in driver.reason
    [none] = gpu(monkeypatch, available=False, smi=None)
    assert none.status == "warning" and "CPU" in none.reason


def test_a_card_that_is_not_reached_is_a_finding(monkeypatch):
    def broken(device):
        raise RuntimeError("CUDA error: uncorrectable ECC error encountered\nSearch for it")

    monkeypatch.setattr(torch.cuda, "device_count", lambda: 1)
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.version, "cuda", "13.0")
    monkeypatch.setattr(torch.cuda, "mem_get_info", broken)
    [finding] = [whole(finding) for finding in machine.gpu()]
    assert finding.status == "error" and "uncorrectable ECC error" in finding.reason


def test_memory_that_nobody_tells_of_is_a_finding(monkeypatch):
    def missing(path):
        raise FileNotFoundError(path)

    monkeypatch.setattr(machine.Path, "read_text", missing)
    assert whole(machine.memory()).status == "warning"


def test_a_python_that_is_not_served(monkeypatch):
    monkeypatch.setattr(machine.platform, "python_version", lambda: "3.10.4")
    assert whole(machine.python()).status == "error"
    monkeypatch.setattr(machine.platform, "machine", lambda: "aarch64")
    assert whole(machine.system()).status == "warning"


class Renamed(ports.Kv, Protocol):
    no_such: int


def test_every_place_of_sglang_is_compared(monkeypatch):
    [known] = dry_run.compare()
    assert whole(known).status == "ok"
    assert (
        f"{len(arguments.SEAMS) + len(seams.SEAMS)} functions and {len(set(PORTS.values()))} classes"
        in known.reason
    )
    gone = Seam("sglang.srt.managers.scheduler.Scheduler.gone", print, seams.SEAMS[0].kind, ())
    monkeypatch.setattr(seams, "SEAMS", (*seams.SEAMS, gone))
    monkeypatch.setattr(dry_run, "PORTS", {Renamed: PORTS[ports.Kv]})
    faults = [whole(finding) for finding in dry_run.compare()]
    assert [finding.status for finding in faults] == ["error", "error"]
    assert "Scheduler.gone is missing" in faults[0].reason and "no no_such" in faults[1].reason


@pytest.mark.parametrize(
    "typed",
    ["--model-path x --page-size 2", "x --page-size 2", "sglang serve x --page-size 2",
     "python -m sglang.launch_server --model-path x --page-size 2"],
)  # fmt: skip
def test_a_command_line_is_taken_as_it_was_typed(typed):
    assert dry_run.without_program(typed.split()) == ["--model-path", "x", "--page-size", "2"]


def resolved(**given):
    cpu = {"device": "cpu", "attention_backend": "torch_native", "sampling_backend": "pytorch"}
    args = ServerArgs(model_path=str(MODEL_PATH), grammar_backend="none", dtype="float32", **(cpu | given))
    args.resolve_once()
    return args


def test_all_refusals_are_found_at_once():
    args = resolved(enable_mixed_chunk=True, page_size=4)
    model = model_config_of(args)
    found = list(dry_run.refused(Config(), resolved_view(args), model))
    assert [line.split()[0] for line in dict.fromkeys(found)] == ["--page-size", "--enable-mixed-chunk"]
    assert not list(dry_run.refused(Config(), resolved_view(resolved()), model))
    preferred = resolved(preferred_sampling_params={"custom_params": {"laprox": {"budget": 0.9}}})
    [line] = dry_run.refused(Config(), resolved_view(preferred), model)
    assert "budget 0.9 is above" in line


def test_what_was_not_tried_is_refused_by_name_or_warned_of(monkeypatch):
    """Its line is parsed by a process of its own: here the flags are those that SGLang resolves."""

    def findings(**given):
        args = resolved(enable_lean_attention=True)
        attach_config(args, Config(**given))
        monkeypatch.setattr("sglang.srt.server_args.prepare_server_args", lambda flags: args)
        return [whole(finding) for finding in dry_run.command_line(["--enable-laprox"])]

    [refused] = findings()
    assert (refused.name, refused.status) == ("--enable-lean-attention", "error")
    assert refused.reason.endswith("or try it: --laprox-untested enable-lean-attention")
    tried, start = findings(untested=("enable-lean-attention",))
    assert (tried.name, tried.status) == ("--enable-lean-attention", "warning")
    assert "was not tried with LaProx: its decode kernel" in tried.reason and start.status == "ok"


@pytest.mark.parametrize(
    ("kv_cache_dtype", "dtype"), [("auto", torch.float32), ("fp8_e4m3", torch.float8_e4m3fn)]
)
def test_what_no_kernel_serves_is_found_before_weights_are_loaded(kv_cache_dtype, dtype, monkeypatch):
    args = resolved(kv_cache_dtype=kv_cache_dtype)
    declare_resolution(args, "test", device="cuda", attention_backend="triton")
    model = model_config_of(args)

    def check_serving(keys, values, queries):
        assert keys.shape[2:] == (2, 64) and queries.shape[1:] == (24, 8, 64)
        assert keys.dtype == values.dtype == dtype and queries.dtype == torch.float32
        raise kernels.Unsupported("attention: head dim 96 (served: 64, 128)")

    zeros = torch.zeros
    monkeypatch.setattr(torch, "zeros", lambda shape, dtype, device: zeros(shape, dtype=dtype))
    monkeypatch.setattr(kernels, "check_serving", check_serving)
    [line] = dry_run.refused(Config(), resolved_view(args), model)
    assert "head dim 96" in line and line.startswith(f"--model-path {MODEL_PATH} ")


def stand_in(monkeypatch, program: str) -> list[Finding]:
    """Findings of a dry run that is another program."""
    run = subprocess.run
    monkeypatch.setattr(
        command.subprocess,
        "run",
        lambda line, **more: run([sys.executable, "-c", program, *line[4:]], **more),
    )
    return [whole(finding) for finding in command.check_start(["--flag"])]


def test_what_a_dry_run_finds_is_shown(monkeypatch):
    said = [Area("hooks").ok("in place", "yes"), Area("command line").error("a", "b", "c")]
    report = msgspec.json.encode(said).decode()
    program = f"import sys, pathlib; pathlib.Path(sys.argv[1]).write_text({report!r})"
    assert stand_in(monkeypatch, program) == said


def test_a_dry_run_that_dies_is_an_error(monkeypatch):
    [finding] = stand_in(monkeypatch, "import sys; print('out of memory', file=sys.stderr); sys.exit(9)")
    assert finding.status == "error" and finding.reason == "ended with 9: out of memory"


def test_a_dry_run_that_does_not_end_is_an_error(monkeypatch):
    monkeypatch.setattr(command, "SECONDS", 0.2)
    [finding] = stand_in(monkeypatch, "import time; time.sleep(60)")
    assert finding.status == "error" and "not done after" in finding.reason


@pytest.mark.parametrize(("status", "code"), [("ok", 0), ("warning", 0), ("error", 1)])
def test_the_exit_code_tells_errors(status, code, monkeypatch, capsys):
    monkeypatch.setattr(
        command, "check_machine", lambda: [Finding("machine", "it", status, "a reason", "a fix")]
    )
    monkeypatch.setattr(command, "check_installation", lambda: [])
    monkeypatch.setattr(
        command, "check_start", lambda flags: [Finding("hooks", "flags", "ok", " ".join(flags))]
    )
    assert main(["doctor", "--", "--page-size", "2"]) == code
    out = capsys.readouterr().out
    assert "a reason" in out and ("a fix" in out) == (status != "ok") and "--page-size 2" in out
