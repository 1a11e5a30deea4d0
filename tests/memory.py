"""How much memory tensors take."""

import weakref

import torch
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves


class Peak(TorchDispatchMode):
    """Largest number of bytes in tensors made inside, at any time."""

    def __init__(self) -> None:
        super().__init__()
        self.live: dict[int, weakref.ref] = {}
        self.now = self.peak = 0

    def __torch_dispatch__(self, function, types, arguments=(), keywords=None):
        result = function(*arguments, **(keywords or {}))
        leaves = tree_leaves((arguments, keywords))
        given = {x.untyped_storage()._cdata for x in leaves if isinstance(x, torch.Tensor)}
        for tensor in tree_leaves(result):
            storage = tensor.untyped_storage() if isinstance(tensor, torch.Tensor) else None
            if storage is not None and storage._cdata not in given | self.live.keys():
                self.now += storage.nbytes()
                self.peak = max(self.peak, self.now)
                self.live[storage._cdata] = weakref.ref(
                    storage, self.forget(storage._cdata, storage.nbytes())
                )
        return result

    def forget(self, key: int, size: int):
        def gone(_) -> None:
            del self.live[key]
            self.now -= size

        return gone
