"""The norm that follows a convolution in training, as the CPU's operators compute it, against PyTorch's."""

from __future__ import annotations

from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from segops import _library
from segops.nn import ConvNormAct
from segops.nn.norm_act import activated
from segops.ops import dilated_conv_norm as fused
from tests.cases import make_logits
from tests.cpu import assert_threads_change_nothing
from tests.tolerances import assert_near

ops = torch.ops.segops
pytestmark = pytest.mark.skipif(_library.native is None, reason=str(_library.cpu_unavailable))
ACTIVATIONS = ConvNormAct.ACTIVATIONS
SHAPES = ((2, 3, 5, 7), (1, 16, 40, 41), (2, 5, 80, 80), (3, 1, 1, 2))


def operands(shape: tuple[int, ...]) -> tuple[Tensor, Tensor, Tensor]:
    """The image, with a mean far from zero, weight and bias."""
    image = make_logits(shape, scale=3.0, seed=1) + 5
    return image, make_logits(shape[1:2], seed=2).square() + 0.5, make_logits(shape[1:2], seed=3)


@pytest.mark.parametrize("activation", ACTIVATIONS)
@pytest.mark.parametrize("shape", SHAPES)
def test_values_and_gradients(shape: tuple[int, ...], activation: str | None) -> None:
    tensors, upstream = operands(shape), make_logits(shape, seed=4)
    number = fused.number_of(activation)

    def theirs(dtype: torch.dtype) -> tuple[Tensor, ...]:
        x, weight, bias = (t.to(dtype).requires_grad_() for t in tensors)
        output = activated(F.batch_norm(x, None, None, weight, bias, True), activation)
        return (output.detach(), *torch.autograd.grad(output, (x, weight, bias), upstream.to(dtype)))

    output, mean, inverse, variance = ops.dilated_conv2d_norm(*tensors, 1e-5, number)
    gradients = ops.dilated_conv2d_norm_backward(upstream, *tensors, mean, inverse, number)
    names = ("output", "grad_image", "grad_weight", "grad_bias")
    for name, mine, truth, own in zip(
        names, (output, *gradients), theirs(torch.float64), theirs(torch.float32), strict=True
    ):
        assert_near(mine, truth, own, what=f"{name} of {activation}, {shape}")
    assert torch.equal(ops.dilated_conv2d_norm_again(*tensors, mean, inverse, number), output)
    wide = tensors[0].double()
    torch.testing.assert_close(variance.double(), wide.var((0, 2, 3), unbiased=False), rtol=1e-5, atol=1e-6)
    torch.testing.assert_close(mean.double(), wide.mean((0, 2, 3)), rtol=1e-6, atol=1e-6)


def test_any_number_of_threads_gives_the_same_bits() -> None:
    tensors, upstream = operands((2, 5, 80, 80)), make_logits((2, 5, 80, 80), seed=4)

    def run() -> tuple[Tensor, ...]:
        output, mean, inverse, variance = ops.dilated_conv2d_norm(*tensors, 1e-5, 1)
        return output, mean, inverse, variance, *ops.dilated_conv2d_norm_backward(upstream, *tensors, mean, inverse, 1)

    assert_threads_change_nothing(run, 1, 2, 7)


def test_nan_stays_in_its_channel() -> None:
    image, weight, bias = operands((1, 3, 4, 9))
    image[0, 1, 2, 3] = float("nan")
    output, mean, inverse, _ = ops.dilated_conv2d_norm(image, weight, bias, 1e-5, 1)
    assert output.isnan().any((0, 2, 3)).tolist() == [False, True, False]
    assert output[0, 1].isnan().all()
    gradient = ops.dilated_conv2d_norm_backward(torch.ones_like(image), image, weight, bias, mean, inverse, 1)[0]
    assert gradient.isnan().any((0, 2, 3)).tolist() == [False, True, False]


def test_the_layer_uses_them_for_planar_float32_images() -> None:
    """Running statistics are those of torch's own norm; other images are normalised by that."""
    torch.manual_seed(0)
    layer, plain = ConvNormAct(2, 3, 3), torch.nn.BatchNorm2d(3)
    x = torch.randn(2, 2, 6, 7)
    names = []

    class Seen(torch.utils._python_dispatch.TorchDispatchMode):
        def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
            names.append(func.__name__)
            return func(*args, **(kwargs or {}))

    for image, own in ((x, True), (x.contiguous(memory_format=torch.channels_last), False), (x.double(), False)):
        names.clear()
        module = layer.to(image.dtype)
        with Seen():
            module(image).sum().backward()
        assert any("dilated_conv2d_norm" in name for name in names) == own
        assert any("native_batch_norm" in name for name in names) != own
        plain.to(image.dtype)(module.conv(image))
        for ours, theirs in zip(module.norm.buffers(), plain.buffers(), strict=True):
            torch.testing.assert_close(ours, theirs)


def test_operators_refuse_what_memory_safety_needs() -> None:
    image, weight, bias = operands((2, 3, 5, 7))
    for bad in (
        (image[..., :4], weight, bias, 1e-5, 1),
        (image, weight[:2], bias, 1e-5, 1),
        (image, weight, bias.double(), 1e-5, 1),
        (image.contiguous(memory_format=torch.channels_last), weight, bias, 1e-5, 1),
        (image[:0], weight, bias, 1e-5, 1),
        (image, weight, bias, 1e-5, 5),
    ):
        with pytest.raises(RuntimeError, match=r"segops.dilated_conv2d_norm: "):
            ops.dilated_conv2d_norm(*bad)
    with pytest.raises(RuntimeError, match=r"grad_output must be"):
        ops.dilated_conv2d_norm_backward(image[:1], image, weight, bias, bias, bias, 1)


def test_opcheck() -> None:
    image, weight, bias = operands((2, 3, 5, 7))
    _, mean, inverse, _ = ops.dilated_conv2d_norm(image, weight, bias, 1e-5, 1)
    torch.library.opcheck(ops.dilated_conv2d_norm.default, (image, weight, bias, 1e-5, 1))
    torch.library.opcheck(ops.dilated_conv2d_norm_again.default, (image, weight, bias, mean, inverse, 1))
    torch.library.opcheck(ops.dilated_conv2d_norm_backward.default, (image, image, weight, bias, mean, inverse, 1))
