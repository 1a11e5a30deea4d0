"""The forward stream, by a device whose streams write down what they are asked for."""

from contextlib import contextmanager
from unittest import mock

import torch

from laprox_sglang.streams import ForwardStream


class Device:
    def __init__(self) -> None:
        self.said = []
        self.schedule = object()

    def current_stream(self) -> object:
        return self.schedule

    @contextmanager
    def stream(self, stream: object):
        self.said.append("on it")
        yield
        self.said.append("off it")


def test_work_waits_for_what_the_schedule_has_enqueued():
    device, stream = Device(), mock.Mock()
    stream.wait_stream.side_effect = lambda other: device.said.append(other)
    with mock.patch.object(torch, "get_device_module", lambda name: device):
        forward = ForwardStream(stream, "cuda")
    with forward.behind():
        device.said.append("work")
    assert device.said == [device.schedule, "on it", "work", "off it"]


def test_without_overlap_scheduling_there_is_one_stream():
    forward = ForwardStream(None, "cpu")
    with forward.behind():
        pass
    forward.keep(torch.zeros(1))


def test_a_tensor_is_kept_for_the_stream_that_reads_it():
    stream, tensor = mock.Mock(), mock.Mock(is_cuda=True)
    with mock.patch.object(torch, "get_device_module", lambda name: Device()):
        ForwardStream(stream, "cuda").keep(tensor)
    tensor.record_stream.assert_called_once_with(stream)
