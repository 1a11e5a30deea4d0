"""How a tile of float8_e4m3fn comes to the tensor cores: as float16, by wide loads from shared memory.

Triton changes a tile's layout to that of a product's operand first and converts its numbers afterwards. So a
thread fetches the single bytes that it needs from shared memory, 128 of a tile of decode's values, or pairs
of them, eight rows of a warp at one bank. But the channels of a product may stand in any order, if both sides
have the same, and there are orders in which a thread's bytes lie together.
"""

# mypy: allow-untyped-defs

import triton
import triton.language as tl

INTERPRETED = tl.constexpr(triton.knobs.runtime.interpret)
# Of two pairs in a register, the even or the odd channels: of shifts the compiler makes four times as many
# instructions.
CONVERT = """{{
    .reg .b32 sorted;
    .reg .b16 even, odd;
    prmt.b32 sorted, $1, 0, 0x3120;
    mov.b32 {{even, odd}}, sorted;
    cvt.rn.f16x2.e4m3x2 $0, {};
}}"""
EVEN, ODD = (tl.constexpr(CONVERT.format(which)) for which in ("even", "odd"))


@triton.jit
def even_and_odd(pairs):
    """The even and the odd channels, float16 ``[N, D / 2]`` each, of a tile loaded as int16 ``[N, D / 2]``.

    For an operand that is transposed: ldmatrix transposes elements of two bytes, none of one.
    """
    if INTERPRETED:
        even = (pairs & 255).to(tl.uint8).to(tl.float8e4nv, bitcast=True).to(tl.float16)
        odd = (pairs >> 8).to(tl.uint8).to(tl.float8e4nv, bitcast=True).to(tl.float16)
    else:
        # Two results of one call would not do: Triton puts the second through shared memory once more.
        even = tl.inline_asm_elementwise(EVEN, "=r,r", [pairs], dtype=tl.float16, is_pure=True, pack=2)
        odd = tl.inline_asm_elementwise(ODD, "=r,r", [pairs], dtype=tl.float16, is_pure=True, pack=2)
    return even, odd


@triton.jit
def dealt(tile):
    """A tile ``[N, D]``, its channels in another order, for an operand of wgmma in registers.

    Four threads have a row of it, dealt out by twos: of each eight channels the first has two, and so on. In
    this order what one has are 16 side by side in memory.
    """
    by_thread = tile.reshape(tile.shape[0], tile.shape[1] // 64, 4, 8, 2)
    return by_thread.permute(0, 1, 3, 2, 4).reshape(tile.shape[0], tile.shape[1])
