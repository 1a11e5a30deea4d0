"""Hook targets: what we know of SGLang still holds, and where it does not the start ends."""

import inspect
import pkgutil
import subprocess
import sys

import pytest
from sglang.srt.plugins.hook_registry import HookRegistry, HookType

from fresh import LAUNCH, last_line, python
from laprox_patches import arguments, seams
from laprox_patches.seam import Seam, SeamError, register, verify
from laprox_sglang.options.server import ENVIRONMENT, Config
from laprox_tools.needle import MODEL_PATH
from server import ROOT

ALL = (*arguments.SEAMS, *seams.SEAMS)
EVERY_SEAM = pytest.mark.parametrize("seam", ALL, ids=lambda seam: ".".join(seam.target.split(".")[-2:]))


def drift(monkeypatch, seam: Seam, **changes) -> None:
    """Puts a function with another signature in the place of the target."""
    path, name = seam.target.rsplit(".", 1)
    target = pkgutil.resolve_name(seam.target)
    signature = inspect.signature(inspect.unwrap(getattr(target, "__func__", target)))

    def drifted(*args, **kwargs):
        raise AssertionError("only looked at")

    drifted.__signature__ = signature.replace(**changes)
    monkeypatch.setattr(pkgutil.resolve_name(path), name, drifted)


def refused(*wrong: Seam) -> str:
    before = dict(HookRegistry._hooks)
    with pytest.raises(SeamError) as error:
        register(wrong)
    assert dict(HookRegistry._hooks) == before, "hooked before all was verified"
    message = str(error.value)
    assert wrong[-1].target in message and "\n" not in message
    return message


def test_installed_sglang_is_the_one_we_know():
    verify(arguments.SEAMS)
    verify(seams.SEAMS)
    # Two hooks of one kind on one target would depend on their order.
    assert len({(seam.target, seam.kind) for seam in ALL}) == len(ALL)


@EVERY_SEAM
def test_renamed_parameter_is_noticed(seam, monkeypatch):
    target = pkgutil.resolve_name(seam.target)
    parameters = list(
        inspect.signature(inspect.unwrap(getattr(target, "__func__", target))).parameters.values()
    )
    parameters[-1] = parameters[-1].replace(name="renamed")
    drift(monkeypatch, seam, parameters=parameters)
    message = refused(seam)
    assert "has changed" in message and "renamed" in message


@EVERY_SEAM
def test_additional_parameter_is_noticed(seam, monkeypatch):
    target = pkgutil.resolve_name(seam.target)
    parameters = list(
        inspect.signature(inspect.unwrap(getattr(target, "__func__", target))).parameters.values()
    )
    added = inspect.Parameter("added", inspect.Parameter.KEYWORD_ONLY, default=None)
    drift(monkeypatch, seam, parameters=[*parameters, added])
    assert "added" in refused(seam)


@EVERY_SEAM
def test_changed_return_is_noticed(seam, monkeypatch):
    drift(monkeypatch, seam, return_annotation=frozenset)
    assert "returns 'frozenset'" in refused(seam)


@EVERY_SEAM
def test_removed_target_is_noticed(seam, monkeypatch):
    path, name = seam.target.rsplit(".", 1)
    monkeypatch.delattr(pkgutil.resolve_name(path), name)
    # What is inherited then is another one.
    inherited = hasattr(pkgutil.resolve_name(path), name)
    assert ("has changed: returns" if inherited else "missing") in refused(seam)


def test_nothing_is_hooked_where_one_target_is_wrong():
    good = arguments.SEAMS[0]
    for target in ("sglang.srt.no_such_module.f", "sglang.srt.managers.scheduler.Scheduler.no_such_method"):
        assert "missing" in refused(good, Seam(target, print, HookType.AFTER, ()))


def test_a_target_that_another_plugin_holds_is_noticed():
    code = """
import json
from sglang.srt.plugins.hook_registry import HookRegistry, HookType
from laprox_patches import arguments
from laprox_patches.seam import SeamError, install, register
target = arguments.SEAMS[0].target
HookRegistry.register(target, lambda result, parser: None, HookType.AFTER)
HookRegistry.apply_hooks()
register(arguments.SEAMS)
try:
    install()
except SeamError as error:
    print(json.dumps([target, str(error)]))
"""
    target, message = last_line(code)
    assert message.startswith(target)


def test_hooks_of_other_plugins_come_to_their_turn():
    code = """
import json
from sglang.srt.plugins.hook_registry import HookRegistry, HookType
from laprox_patches.plugin import load
load()
seen = []
target = "sglang.srt.server_args.ServerArgs.add_cli_args"
HookRegistry.register(target, lambda *a: seen.append(1), HookType.AFTER)
HookRegistry.apply_hooks()
import argparse
from sglang.srt.server_args import ServerArgs
parser = argparse.ArgumentParser()
ServerArgs.add_cli_args(parser)
print(json.dumps([seen, parser.parse_args(["--model-path", "x", "--enable-laprox"]).enable_laprox]))
"""
    assert last_line(code) == [[1], True]


PATCHED = """
import json
from sglang.srt.plugins import load_plugins
load_plugins()
from sglang.srt.plugins.hook_registry import HookRegistry
import sys
ours = [name for name in ("laprox_sglang.cache.tree", "laprox_patches.seams") if name in sys.modules]
print(json.dumps([sorted(HookRegistry._patched), ours]))
"""


def test_without_laprox_only_the_arguments_are_hooked():
    patched, loaded = last_line(PATCHED)
    assert patched == sorted(seam.target for seam in arguments.SEAMS)
    assert not loaded


def test_with_laprox_everything_is_hooked():
    patched, _ = last_line(PATCHED, **{ENVIRONMENT: "{}"})
    assert patched == sorted(seam.target for seam in ALL)


RESOLVED = f"""
import json, pickle
from sglang.srt.plugins import load_plugins
load_plugins()
from sglang.srt.server_args import ServerArgs
arguments = ServerArgs(model_path={str(MODEL_PATH)!r}, device="cpu", attention_backend="torch_native")
arguments.resolve_once()
found = [getattr(each, "_laprox", None) for each in (arguments, pickle.loads(pickle.dumps(arguments)))]
print(json.dumps([config and config.to_json() for config in found] + [arguments.radix_cache_backend]))
"""


def test_resolving_arguments_turns_laprox_on_and_children_get_to_know():
    """A hook can verify, count as in place and never run: one on ``__post_init__`` of a msgspec record."""
    config = Config(budget=0.3).to_json()
    assert last_line(RESOLVED, **{ENVIRONMENT: config}) == [config, config, "laprox"]
    assert last_line(RESOLVED) == [None, None, None]


@pytest.mark.parametrize("config", ["{", '{"budget": 2.5}'])
def test_bad_environment_ends_the_process_in_one_line(config):
    done = python(PATCHED, **{ENVIRONMENT: config})
    assert done.returncode != 0
    assert done.stderr.splitlines()[-1].startswith(f"laprox: {ENVIRONMENT}=")


DRIFTED = """
import sglang.srt.managers.scheduler as scheduler
known = scheduler.Scheduler.run_batch
def run_batch(self, the_batch, pp_proxy_tensors=None):
    return known(self, the_batch, pp_proxy_tensors)
run_batch.__annotations__ = {"return": known.__annotations__["return"]}
scheduler.Scheduler.run_batch = run_batch
"""


def test_server_does_not_start_over_a_drifted_target():
    flags = f"--model-path {MODEL_PATH} --device cpu --enable-laprox --attention-backend torch_native".split()
    done = python(DRIFTED + LAUNCH, *flags)
    assert done.returncode != 0
    assert done.stderr.splitlines()[-1].startswith(
        "laprox: sglang.srt.managers.scheduler.Scheduler.run_batch has changed: parameters"
    )
    assert "Traceback" not in done.stderr


def test_module_named_kernels_is_the_one_from_the_package_index():
    """In a process of its own from the start: SGLang's import is what asks for it."""
    code = """
import os, sys
sys.path.insert(0, os.getcwd())
import kernels
print(kernels.__file__, hasattr(kernels, "get_kernel"))
"""
    assert (ROOT / "kernels").is_dir(), "started elsewhere, this proves nothing"
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=True)
    file, complete = done.stdout.split()
    assert "site-packages" in file and complete == "True"
