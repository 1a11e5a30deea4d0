"""The stream on which work on views is enqueued."""

from collections.abc import Iterator
from contextlib import contextmanager

import torch


class ForwardStream:
    """The stream that the model runs on.

    Work on a view is enqueued there: behind the forward pass at hand, behind what the host has enqueued on
    the schedule stream so far, and in front of whatever is launched next.
    """

    def __init__(self, stream: torch.Stream | None, device: str) -> None:
        """
        Args:
            stream: SGLang's forward stream; None without overlap scheduling, where there is one for all work.
        """
        self._stream = stream
        self._device = torch.get_device_module(device)

    @contextmanager
    def behind(self) -> Iterator[None]:
        """The context in which such work is enqueued; the current stream outside is the schedule stream."""
        if self._stream is None:
            yield
            return
        # What is read here may still be in the making on the schedule stream: the slots of a view, say.
        self._stream.wait_stream(self._device.current_stream())
        with self._device.stream(self._stream):
            yield

    def keep(self, tensor: torch.Tensor) -> None:
        """Keeps the memory of a tensor of the schedule stream until what is enqueued here has read it."""
        if self._stream is not None and tensor.is_cuda:
            tensor.record_stream(self._stream)
