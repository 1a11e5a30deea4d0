"""What Triton would compile for a launch, on a machine without a GPU; the interpreter must be off."""

from functools import cache

from triton.backends.compiler import GPUTarget
from triton.compiler import ASTSource, make_backend
from triton.runtime.jit import JITFunction, create_function_from_signature

TARGETS = [GPUTarget("cuda", 80, 32), GPUTarget("cuda", 90, 32)]


@cache
def binder(kernel, target):
    backend = make_backend(target)
    return backend, create_function_from_signature(kernel.signature, kernel.params, backend)


def instead_of_launching(function):
    """Has every launch call ``function(kernel, arguments, keywords)``."""

    def item(kernel, grid):
        return lambda *arguments, **keywords: function(kernel, arguments, keywords)

    JITFunction.__getitem__ = item


def variant(kernel, arguments, keywords, target=TARGETS[-1]):
    """What Triton looks a compiled kernel up by: types, constants, divisibility, options."""
    _, specialization, options = binder(kernel, target)[1](*arguments, **keywords)
    return kernel.__name__, str(specialization), str(options)


def source(kernel, arguments, keywords, target):
    """What Triton compiles for such a launch, and the options."""
    backend, bind = binder(kernel, target)
    bound, specialization, _ = bind(*arguments, **keywords)
    options, signature, constants, attributes = kernel._pack_args(
        backend, keywords, bound, specialization, None
    )  # fmt: skip
    return ASTSource(kernel, signature, constants, attributes), options.__dict__
