"""What is asked of the prefix cache for a view."""

from typing import NamedTuple, Protocol

import torch

from laprox_sglang.ports import Req
from laprox_sglang.views.plan import Plan
from laprox_sglang.views.view import View


class Opened(NamedTuple):
    """Room for a view: the lock on what it stands for has been given up.

    Attributes:
        slots: int64 ``[m]``.
        staged: they may be among those that the view is packed from.
        freed: slots that others can have now and could not before.
    """

    slots: torch.Tensor
    staged: bool
    freed: int


class Cache(Protocol):
    """What is asked of the prefix cache."""

    def publish(self, req: Req) -> None:
        """Puts a prompt into the tree whose last chunk is about to be computed."""

    def open_view(self, req: Req, plan: Plan, reserve: int) -> Opened | str:
        """Takes slots for a view; where that cannot be, why the prompt is left whole."""

    def exchange(self, req: Req, view: View | None, freed: torch.Tensor | None = None) -> None:
        """Lets a request read ``view`` of its prompt from now on; slots in ``freed`` are given back."""
