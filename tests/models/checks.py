"""What every network must do, for the tests of each family to call at a size that is quick for it."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn

from segops import models
from segops.models import SegmentationModel


def parameters(model: nn.Module) -> int:
    return sum(p.numel() for p in model.parameters())


def on_meta(name: str, num_classes: int | None = None, **options: Any) -> SegmentationModel:
    """The network without memory, for counting."""
    with torch.device("meta"):
        return models.create_model(name, num_classes, **options)


def build(name: str, num_classes: int | None = None, *, seed: int = 0, **options: Any) -> SegmentationModel:
    """The network in eval mode with weights that let differences through all of its depth be seen."""
    torch.manual_seed(seed)
    model = models.create_model(name, num_classes, **options).eval()
    shake(model)
    return model


def shake(model: nn.Module) -> None:
    """Statistics, scales and biases that differ from channel to channel, so that none can be left out unseen."""
    for key, tensor in model.state_dict().items():
        if key.endswith("running_var"):
            tensor.uniform_(0.5, 1.5)
        elif key.endswith(("running_mean", "bias")):
            tensor.uniform_(-0.2, 0.2)
        elif key.endswith("weight") and tensor.ndim == 1:
            tensor.uniform_(0.6, 1.4)


def image(height: int, width: int, channels: int = 3, batch: int = 1, dtype: torch.dtype = torch.float32) -> Tensor:
    return torch.rand(batch, channels, height, width, generator=torch.Generator().manual_seed(3), dtype=dtype)


def as_list(output: Any) -> list[Tensor]:
    if isinstance(output, Tensor):
        return [output]
    return list(output.values()) if isinstance(output, Mapping) else list(output)


def check_sizes(model: SegmentationModel, num_classes: int, sizes: list[tuple[int, int]], channels: int = 3) -> None:
    """Logits of the image's size in eval and in training mode, the same at every call, and gradients everywhere."""
    for height, width in sizes:
        x = image(height, width, channels, batch=2)
        with torch.no_grad():
            first, again = model.eval()(x), model(x)
        assert first.shape == (2, num_classes, height, width)
        assert first.dtype == x.dtype
        assert bool(torch.isfinite(first).all())
        assert torch.equal(first, again)
    outputs = as_list(model.train()(x))
    assert len(outputs) > 1 or not model.has_side_outputs
    assert all(o.shape == (2, num_classes, height, width) for o in outputs)
    sum(o.square().mean() for o in outputs).backward()
    without = [key for key, p in model.named_parameters() if p.requires_grad and p.grad is None]
    assert not without, f"no gradient reaches {without}"
    model.zero_grad()
    model.eval()


def check_graphs(model: SegmentationModel, height: int, width: int, channels: int = 3) -> None:
    """One graph for torch.compile, and torch.export, with the result of eager."""
    x = image(height, width, channels)
    model.eval()
    with torch.no_grad():
        expected = model(x)
        compiled = torch.compile(model, fullgraph=True, dynamic=False, backend="aot_eager")(x)
        exported = torch.export.export(model, (x,)).module()(x)
    torch.testing.assert_close(compiled, expected)
    torch.testing.assert_close(exported, expected)


def check_parity(name: str, plain: nn.Module, x: Tensor, official: Any, **options: Any) -> SegmentationModel:
    """The same output as `plain`, a network of torch.nn with the official keys, from its state, in float64 to 1e-9.

    Args:
        name: of the network.
        plain: the published network, written with torch.nn from its description alone.
        x: [N, C, H, W].
        official: what ``plain(x)`` is to be compared with; None for ``model(x, raw_output=True)``.
        options: of create_model.
    """
    plain = plain.double().eval()
    shake(plain)
    state = models.convert_official_state_dict(name, plain.state_dict())
    model = models.create_model(name, **options).double().eval()
    model.load_state_dict(state)
    x = x.double()
    with torch.no_grad():
        expected = as_list(plain(x))
        actual = as_list(official(model, x) if official is not None else model(x, raw_output=True))
    assert len(actual) == len(expected)
    for a, e in zip(actual, expected, strict=True):
        assert a.shape == e.shape
        assert float(e.abs().max()) > 1e-6  # or equality would say nothing
        torch.testing.assert_close(a, e, rtol=0, atol=1e-9 * max(1.0, float(e.abs().max())))
    return model
