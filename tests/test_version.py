"""Another SGLang than the one served: a start that asks for LaProx ends in one line, others stay stock."""

import pytest

from fresh import LAUNCH, last_line, python
from laprox_patches.seam import SeamError
from laprox_patches.version import SERVED, check_ports, check_version
from laprox_sglang.options.server import ENVIRONMENT
from laprox_sglang.ports import PORTS
from laprox_tools.needle import MODEL_PATH

FLAGS = f"--model-path {MODEL_PATH} --device cpu --attention-backend torch_native".split()
OTHERS = pytest.mark.parametrize("version", ["0.5.17", "0.5.20", "0.5.24"])
# In another SGLang there may be nothing that this module imports.
UNIMPORTABLE = 'import sys; sys.modules["laprox_patches.arguments"] = None\n'


def faked(version: str) -> str:
    return f"import sglang.version; sglang.version.__version__ = {version!r}\n"


def the_one_line(done) -> str:
    assert done.returncode != 0
    assert "Traceback" not in done.stderr
    lines = [line for line in done.stderr.splitlines() if line.startswith("laprox: ")]
    assert lines == [done.stderr.splitlines()[-1]]
    return lines[0]


@OTHERS
@pytest.mark.parametrize("early", ["", UNIMPORTABLE], ids=["", "nothing to import"])
def test_a_start_with_laprox_names_the_version_that_is_served(version, early):
    done = python(faked(version) + early + LAUNCH, *FLAGS, "--enable-laprox")
    assert the_one_line(done).startswith(f"laprox: SGLang {version} is not served, only {SERVED}: ")


def test_a_configuration_in_the_environment_asks_for_laprox_as_well():
    done = python(faked("0.5.20") + LAUNCH, *FLAGS, **{ENVIRONMENT: "{}"})
    assert the_one_line(done).startswith("laprox: SGLang 0.5.20 is not served, ")


STOCK = """
import json, logging
seen = []
handler = logging.Handler()
handler.emit = lambda record: seen.append((record.levelname, record.getMessage()))
logging.getLogger("laprox_patches.plugin").addHandler(handler)
from sglang.srt.plugins import load_plugins
load_plugins()
from sglang.srt.plugins.hook_registry import HookRegistry
from sglang.srt.server_args import ServerArgs
import argparse
parser = argparse.ArgumentParser()
ServerArgs.add_cli_args(parser)
flags = [flag for action in parser._actions for flag in action.option_strings if "laprox" in flag]
hooks = [hook.__module__ for entries in HookRegistry._hooks.values() for _, hook, *_ in entries]
# SGLang brings plugins of its own.
print(json.dumps([seen, [name for name in hooks if name.startswith("laprox")], flags]))
"""


@OTHERS
def test_a_start_without_laprox_stays_stock_and_says_so(version):
    seen, hooked, flags = last_line(faked(version) + UNIMPORTABLE + STOCK)
    [[level, message]] = seen
    assert level == "WARNING" and message.startswith(f"laprox: not available: SGLang {version} is not served")
    assert not hooked and not flags


MISSING_FIELD = """
import dataclasses
import sglang.srt.managers.schedule_batch as schedule_batch
known = [field.name for field in dataclasses.fields(schedule_batch.ReqKvInfo)]
assert "cache_protected_len" in known
other = dataclasses.make_dataclass("ReqKvInfo", [name for name in known if name != "cache_protected_len"])
other.holds_kv = schedule_batch.ReqKvInfo.holds_kv
schedule_batch.ReqKvInfo = other
"""


def test_a_missing_field_is_named():
    done = python(MISSING_FIELD + LAUNCH, *FLAGS, "--enable-laprox")
    assert the_one_line(done).endswith("ReqKvInfo has changed: no cache_protected_len")


def test_the_installed_sglang_has_all_that_is_relied_on():
    check_version()
    check_ports()


@pytest.mark.parametrize("protocol", PORTS, ids=lambda protocol: protocol.__name__)
def test_every_member_of_a_port_is_looked_for(protocol):
    more = {"no_such_attribute": int, "no_such_method": lambda self: None, "no_such_property": property()}
    annotated = type(
        protocol.__name__,
        (),
        {**vars(protocol), **more, "__annotations__": {**protocol.__annotations__, "no_such_field": int}},
    )
    with pytest.raises(SeamError, match=r"has changed: no no_such_field, no_such_method, no_such_property$"):
        check_ports({annotated: PORTS[protocol]})
    with pytest.raises(SeamError, match="is missing from this SGLang"):
        check_ports({protocol: PORTS[protocol] + "Gone"})
