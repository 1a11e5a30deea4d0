"""W_O out of SGLang's own quantized projections; its kernels in Triton are interpreted where no GPU is."""

import torch
from sglang.kernels.ops.gemm import fp8_kernel
from sglang.kernels.ops.quantization.awq_triton import awq_dequantize_decomposition
from sglang.srt.hardware_backend.gpu.quantization import awq_kernels
from sglang.srt.layers.linear import RowParallelLinear
from sglang.srt.layers.quantization.awq import AWQConfig
from sglang.srt.layers.quantization.fp8 import Fp8Config
from sglang.srt.runtime_context import get_context, get_parallel

from laprox_sglang.projection import projection_weight

SIZE, HIDDEN, BLOCK, GROUP = 256, 384, 128, 64
E4M3 = torch.float8_e4m3fn
AWQ_ORDER = (0, 2, 4, 6, 1, 3, 5, 7)
ON_GPU = torch.cuda.is_available()
DEVICE = "cuda" if ON_GPU else "cpu"


def projection(config, dtype=torch.bfloat16):
    """W_O of a model that is quantized so, with nothing loaded yet, where SGLang has it and quantizes it."""
    with (
        get_context().override_server_args(device=DEVICE),
        get_parallel().override(tp_rank=0, tp_size=1),
    ):
        return RowParallelLinear(
            SIZE, HIDDEN, bias=False, params_dtype=dtype, quant_config=config, prefix="o_proj"
        ).to(DEVICE)


def loaded(layer, **numbers):
    for name, values in numbers.items():
        getattr(layer, name).data.copy_(values)
    layer.quant_method.process_weights_after_loading(layer)
    return layer


def fp8_at_load():
    """bf16 that SGLang quantizes itself: a scale for each row."""
    weight = torch.randn(HIDDEN, SIZE, dtype=torch.bfloat16)
    layer = loaded(projection(Fp8Config()), weight=weight)
    assert layer.weight.dtype == E4M3 and layer.weight_scale.numel() in (1, HIDDEN)
    return layer, (layer.weight.float() * layer.weight_scale.float().view(1, -1)).T


def fp8_blocks(monkeypatch):
    if not ON_GPU:
        # Tuned tiles are looked up by the name of a GPU.
        monkeypatch.setattr(fp8_kernel, "get_device_name", lambda: "a CPU")
    config = Fp8Config(is_checkpoint_fp8_serialized=True, weight_block_size=[BLOCK, BLOCK])
    weight = (torch.randn(HIDDEN, SIZE) * 60).to(E4M3)
    scale = torch.rand(HIDDEN // BLOCK, SIZE // BLOCK) + 0.5
    layer = loaded(projection(config), weight=weight, weight_scale_inv=scale)
    return layer, weight.float() * scale.repeat_interleave(BLOCK, 0).repeat_interleave(BLOCK, 1)


def packed(numbers):
    """Eight numbers of 4 bits in one of 32, in AWQ's order."""
    words = torch.zeros(numbers.shape[0], numbers.shape[1] // 8, dtype=torch.int64)
    for place, column in enumerate(AWQ_ORDER):
        words |= numbers[:, column::8].long() << 4 * place
    return words.to(torch.int32)


def awq(monkeypatch):
    if not ON_GPU:
        # The kernel is CUDA's; this is what SGLang has in torch beside it.
        monkeypatch.setattr(awq_kernels, "awq_dequantize", awq_dequantize_decomposition)
    numbers = torch.randint(16, (SIZE, HIDDEN))
    zeros = torch.randint(16, (SIZE // GROUP, HIDDEN))
    scales = (torch.rand(SIZE // GROUP, HIDDEN) + 0.5).half()
    layer = loaded(
        projection(AWQConfig(4, GROUP, True), torch.float16),
        qweight=packed(numbers),
        qzeros=packed(zeros),
        scales=scales,
    )
    wide = [x.repeat_interleave(GROUP, 0).float() for x in (zeros, scales)]
    return layer, ((numbers - wide[0]) * wide[1]).T


def check(layer, expected, channels=slice(40, 72)):
    assert not isinstance(getattr(layer, "weight", None), torch.Tensor) or layer.weight.element_size() == 1
    found = projection_weight(layer, SIZE, channels)
    assert found.shape == (channels.stop - channels.start, HIDDEN) and found.dtype == torch.float32
    # Its output is in 16 bits, which the interpreter cuts and does not round.
    torch.testing.assert_close(found.cpu(), expected[:, channels].T.cpu(), rtol=2**-7, atol=1e-5)


def test_fp8_that_is_quantized_at_load(seed):
    check(*fp8_at_load())


def test_fp8_in_blocks(seed, monkeypatch):
    check(*fp8_blocks(monkeypatch))


def test_awq(seed, monkeypatch):
    check(*awq(monkeypatch))
