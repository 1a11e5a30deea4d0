"""Python imports this first: SGLang's LoRA pins memory, which takes a GPU, where there is none as well."""

import functools
from collections.abc import Callable

import torch


def unpinned(make: Callable[..., torch.Tensor]) -> Callable[..., torch.Tensor]:
    @functools.wraps(make)
    def wrapped(*given: object, **keywords: object) -> torch.Tensor:
        keywords.pop("pin_memory", None)
        return make(*given, **keywords)

    return wrapped


torch.Tensor.pin_memory = lambda self, *given: self
for name in ("tensor", "zeros", "empty", "arange"):
    setattr(torch, name, unpinned(getattr(torch, name)))
