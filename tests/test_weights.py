"""Every way in which SGLang changes weights ends in scores of the weights that are served.

The scheduler's updater is SGLang's own, hooked as a server hooks it; what it calls of a model runner
writes W_O instead of loading it.
"""

import dataclasses
import inspect
import re
from collections.abc import Callable, Iterator
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from sglang.srt.constants import GPU_MEMORY_TYPE_KV_CACHE, GPU_MEMORY_TYPE_WEIGHTS
from sglang.srt.entrypoints import http_server
from sglang.srt.managers import scheduler
from sglang.srt.managers.io_struct import (
    BeginWeightUpdateReqInput,
    CheckWeightsReqInput,
    EndWeightUpdateReqInput,
    ReleaseMemoryOccupationReqInput,
    ResumeMemoryOccupationReqInput,
    UpdateWeightFromDiskReqInput,
    UpdateWeightsFromDistributedReqInput,
    UpdateWeightsFromIPCReqInput,
    UpdateWeightsFromTensorReqInput,
)
from sglang.srt.managers.scheduler_components import weight_updater as updater
from sglang.srt.managers.scheduler_components.weight_updater import SchedulerWeightUpdaterManager
from sglang.srt.model_executor.model_runner import ModelRunner
from sglang.srt.plugins.hook_registry import HookRegistry

from fakes import DIM, HEADS, LAYERS, TinyModel, WritingBackend
from laprox_patches.scheduler import weights
from laprox_sglang.attention.backend import with_laprox
from laprox_sglang.options.server import Config
from laprox_sglang.projection import gram_matrices
from laprox_sglang.ranks import ONE_RANK
from laprox_sglang.served_model import scored_layers
from laprox_sglang.views.score import Scoring

# What the updater's methods do to the weights that are served. A method that is in neither list was not
# looked at: does it change weights?
IN_A_SESSION = {"begin_weight_update", "update_weights_from_distributed", "update_weights_from_tensor"}
WRITES_NOTHING = {
    "init_weights_update_group", "destroy_weights_update_group", "get_weights_by_name", "save_remote_model",
    "save_sharded_model", "flush_cache_after_weight_update", "record_weight_version_after_update",
    # It makes them unreadable; resuming comes after it.
    "release_memory_occupation",
}  # fmt: skip
# Addresses that reach a method of the updater, or that have "weight" or "memory" in them and do not.
ADDRESSES = {
    "update_weights_from_disk", "update_weights_from_tensor", "update_weights_from_distributed",
    "update_weights_from_ipc", "begin_weight_update", "end_weight_update", "init_weights_update_group",
    "destroy_weights_update_group", "get_weights_by_name", "release_memory_occupation",
    "resume_memory_occupation",
    # check_weights
    "weights_checker",
    # A number; and the side that sends.
    "update_weight_version", "init_weights_send_group_for_remote_instance",
    "send_weights_to_remote_instance",
}  # fmt: skip


def test_every_method_of_sglangs_updater_is_known():
    fields = {field.name for field in dataclasses.fields(SchedulerWeightUpdaterManager)}
    public = {
        name
        for name, member in vars(SchedulerWeightUpdaterManager).items()
        if callable(member) and not name.startswith("_") and name not in fields
    }
    assert public == {*weights.CHANGES} | IN_A_SESSION | WRITES_NOTHING


def test_every_address_that_changes_weights_is_known():
    words = ("weight", "memory")
    paths = re.findall(r'@app\.\w+\(\s*"/([^"]+)"', inspect.getsource(http_server))
    assert {path for path in paths if any(word in path for word in words)} == ADDRESSES, (
        "look at the new ones"
    )


def test_the_scheduler_hands_weights_to_nobody_else():
    handled = inspect.getsource(scheduler.Scheduler.init_request_dispatcher)
    asked = {line.strip(" ,") for line in handled.splitlines() if "weight" in line and "self." in line}
    others = {line for line in asked if not line.startswith("self.weight_updater.")}
    assert others == {
        "self.init_weights_send_group_for_remote_instance",
        "self.send_weights_to_remote_instance",
        "self.handle_update_weight_version",
    }


@pytest.fixture(scope="module", autouse=True)
def hooked() -> Iterator[None]:
    """The hooks of weights in this process, as SGLang puts them there."""
    kept = dict(HookRegistry._hooks), set(HookRegistry._patched)
    stock = {seam.target: resolve(seam.target) for seam in weights.SEAMS}
    HookRegistry.reset()
    for seam in weights.SEAMS:
        HookRegistry.register(seam.target, seam.hook, seam.kind)
    HookRegistry.apply_hooks()
    yield
    for target, method in stock.items():
        setattr(*owner(target), method)
    HookRegistry._hooks.clear()
    HookRegistry._hooks.update(kept[0])
    HookRegistry._patched = kept[1]


def owner(target: str) -> tuple[type, str]:
    name = target.rpartition(".")[2]
    return next(kind for kind in (SchedulerWeightUpdaterManager, ModelRunner) if hasattr(kind, name)), name


def resolve(target: str) -> Callable[..., Any]:
    return inspect.getattr_static(*owner(target))


class Runner:
    """What SGLang's updater, and our hook, ask of a model runner."""

    is_draft_worker = False

    def __init__(self) -> None:
        self.model = TinyModel()
        keys, values = torch.zeros((2, 9, LAYERS, HEADS, DIM))
        self.scoring = Scoring(Config(), scored_layers(self.model), keys, values, ONE_RANK)
        pruner = SimpleNamespace(load_weights=self.scoring.load_weights)
        stock, runtime = WritingBackend(SimpleNamespace(pool=None)), SimpleNamespace(pruner=pruner)
        self.attn_backend = with_laprox(stock, runtime)
        self.weight_updater = self
        self.startup_weight_load = SimpleNamespace(finalize=self.write)
        self.succeeds = True

    def write(self, *given: Any, **options: Any) -> tuple[bool, str]:
        """Other weights, in place."""
        with torch.no_grad():
            for layer in self.model.layers:
                layer.o_proj.weight.add_(1.0)
        return self.succeeds, "said"

    update_weights_from_disk = update_weights_from_ipc = update_weights_from_tensor = write
    load_weights_from_distributed = write

    def check_weights(self, **given: Any) -> None:
        self.write()

    def receive_weights_from_distributed(self, **given: Any) -> list[Any]:
        return []

    def begin_weight_update(self) -> None:
        """Restores what is packed: nothing of it can be read as weights until the end."""
        self.packed = [layer.o_proj for layer in self.model.layers]
        for layer in self.model.layers:
            layer.o_proj = torch.nn.Identity()

    def end_weight_update(self, run_post_load: bool) -> None:
        self.ran_post_load = run_post_load
        for layer, projection in zip(self.model.layers, self.packed, strict=True):
            layer.o_proj = projection

    @property
    def right(self) -> bool:
        return torch.equal(self.scoring._gram, gram_matrices(scored_layers(self.model)))


class Server:
    """SGLang's updater over one runner."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        parallel = SimpleNamespace(tp_group=SimpleNamespace(cpu_group=None))
        monkeypatch.setattr(updater, "get_parallel", lambda: parallel)
        monkeypatch.setattr(updater, "get_model", lambda: SimpleNamespace(weight_cache_mode="off"))
        monkeypatch.setattr(torch.distributed, "barrier", lambda group=None: None)
        monkeypatch.setattr(torch.distributed, "get_world_size", lambda group=None: 1)
        # What SGLang waits for at a release; there is none here.
        monkeypatch.setattr(torch, "get_device_module", lambda: SimpleNamespace(synchronize=lambda: None))
        self.runner = Runner()
        self.paused: list[str] = []
        worker = SimpleNamespace(
            model_runner=self.runner,
            weight_update_runners=lambda: [("target", self.runner)],
            deserialize_own_rank=lambda tensors: [],
        )
        self.updater = SchedulerWeightUpdaterManager(
            tp_worker=worker,
            draft_worker=None,
            memory_saver_adapter=SimpleNamespace(pause=self.pause, resume=self.resume),
            flush_cache=lambda **options: True,
            is_fully_idle=lambda **options: True,
            scheduler=SimpleNamespace(
                _engine_paused=False, disaggregation_mode=None, record_weight_version_change=lambda **x: None
            ),
        )

    def pause(self, tag: str) -> None:
        self.paused.append(tag)
        if tag == GPU_MEMORY_TYPE_WEIGHTS:
            self.runner.begin_weight_update()

    def resume(self, tag: str) -> None:
        self.paused.remove(tag)
        if tag == GPU_MEMORY_TYPE_WEIGHTS:
            self.runner.end_weight_update(run_post_load=False)
            # Without a backup on the CPU the memory comes back with anything in it.
            self.runner.write()

    def ask(self, method: str, request: Any) -> Any:
        return getattr(self.updater, method)(request)

    def begin(self, selector: str = "all") -> None:
        assert self.ask("begin_weight_update", BeginWeightUpdateReqInput(selector=selector)).success

    def end(self) -> None:
        assert self.ask("end_weight_update", EndWeightUpdateReqInput()).success


DISK = UpdateWeightFromDiskReqInput(model_path="other")
IPC = UpdateWeightsFromIPCReqInput(zmq_handles={})
TENSOR = UpdateWeightsFromTensorReqInput(serialized_named_tensors=[])
DISTRIBUTED = UpdateWeightsFromDistributedReqInput(names=[], dtypes=[], shapes=[])


@pytest.fixture
def server(monkeypatch: pytest.MonkeyPatch) -> Server:
    server = Server(monkeypatch)
    assert server.runner.right
    server.runner.write()
    assert not server.runner.right, "this proves nothing"
    server.runner.scoring.load_weights()
    return server


@pytest.mark.parametrize(
    ("method", "request_"), [("update_weights_from_disk", DISK), ("update_weights_from_ipc", IPC)]
)
@pytest.mark.parametrize("succeeds", [True, False])
def test_weights_that_come_at_once(server, method, request_, succeeds):
    # What fails may have written a part.
    server.runner.succeeds = succeeds
    assert server.ask(method, request_).success is succeeds
    assert server.runner.right


@pytest.mark.parametrize(
    ("method", "request_"),
    [
        ("update_weights_from_tensor", TENSOR),
        ("update_weights_from_distributed", DISTRIBUTED),
        ("update_weights_from_disk", DISK),
        ("update_weights_from_ipc", IPC),
        # P2P and RDMA write by themselves.
        (None, None),
    ],
)
def test_weights_that_come_in_a_session(server, method, request_):
    runner, before = server.runner, server.runner.scoring._gram.clone()
    server.begin()
    for projection in runner.packed:
        projection.weight.data.add_(1.0)
    # In the middle there is nothing that could be read.
    runner.write = runner.update_weights_from_disk = runner.update_weights_from_ipc = lambda *x, **y: (
        True,
        "",
    )
    runner.update_weights_from_tensor = runner.load_weights_from_distributed = lambda *x, **y: (True, "")
    if method is not None:
        assert server.ask(method, request_).success
    assert torch.equal(runner.scoring._gram, before)
    server.end()
    assert runner.right and not torch.equal(runner.scoring._gram, before)
    assert runner.ran_post_load == (
        method not in ("update_weights_from_tensor", "update_weights_from_distributed")
    )


@pytest.mark.parametrize(
    ("method", "request_"),
    [("update_weights_from_tensor", TENSOR), ("update_weights_from_distributed", DISTRIBUTED)],
)
def test_tensors_are_taken_in_a_session_only(server, method, request_):
    """If they were taken without one, their end would have to be hooked."""
    assert not server.ask(method, request_).success and server.runner.right


@pytest.mark.parametrize("tags", [None, [GPU_MEMORY_TYPE_WEIGHTS]])
def test_memory_that_comes_back(server, tags):
    server.ask("release_memory_occupation", ReleaseMemoryOccupationReqInput(tags=tags))
    assert GPU_MEMORY_TYPE_WEIGHTS in server.paused
    server.ask("resume_memory_occupation", ResumeMemoryOccupationReqInput(tags=tags))
    assert not server.paused and server.runner.right


def test_memory_that_comes_back_in_parts(server):
    """KV first, as some trainers do: the weights cannot be read yet."""
    kv, weights_ = [GPU_MEMORY_TYPE_KV_CACHE], [GPU_MEMORY_TYPE_WEIGHTS]
    server.ask("release_memory_occupation", ReleaseMemoryOccupationReqInput(tags=kv + weights_))
    server.ask("resume_memory_occupation", ResumeMemoryOccupationReqInput(tags=kv))
    server.ask("resume_memory_occupation", ResumeMemoryOccupationReqInput(tags=weights_))
    assert server.runner.right


def test_memory_that_comes_back_for_new_weights(server):
    """Memory for weights, new weights in a session, memory for KV: a turn of reinforcement learning."""
    server.ask("release_memory_occupation", ReleaseMemoryOccupationReqInput(tags=None))
    server.ask("resume_memory_occupation", ResumeMemoryOccupationReqInput(tags=[GPU_MEMORY_TYPE_WEIGHTS]))
    server.begin()
    for projection in server.runner.packed:
        projection.weight.data.add_(1.0)
    server.end()
    assert server.runner.right
    rest = [tag for tag in server.updater.offload_tags if tag != GPU_MEMORY_TYPE_WEIGHTS]
    server.ask("resume_memory_occupation", ResumeMemoryOccupationReqInput(tags=rest))
    assert server.runner.right and not server.paused


def test_a_check_that_fills_weights_with_noise(server):
    assert server.ask("check_weights", CheckWeightsReqInput(action="reset_tensors")).success
    assert server.runner.right


@pytest.mark.parametrize("draft", [False, True])
def test_weights_that_come_after_the_start(draft, monkeypatch):
    """``--startup-weight-load-mode overlap``: the attention backend stands before they are there."""
    monkeypatch.setattr("sglang.srt.model_executor.model_runner.dist_barrier_after_load", lambda **x: None)
    moe = SimpleNamespace(elastic_ep_backend=None, is_ep_joiner=False)
    monkeypatch.setattr("sglang.srt.model_executor.model_runner.get_exec", lambda: SimpleNamespace(moe=moe))
    parallel = SimpleNamespace(tp_rank=0)
    monkeypatch.setattr("sglang.srt.model_executor.model_runner.get_parallel", lambda: parallel)
    runner = Runner()
    runner.is_draft_worker = draft
    if draft:
        runner.attn_backend = SimpleNamespace()
    ModelRunner.finalize_startup_weight_load(runner)
    assert draft or runner.right
