from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from segops import models
from segops.models.scene_parsing import SceneParsing
from tests.models import checks
from tests.models.plain.scene_parsing import PatchNet

NAME = "scene_parsing_2009"


def _build(**options: Any) -> SceneParsing:
    model = checks.build(NAME, 3, in_channels=2, **options)
    assert isinstance(model, SceneParsing)
    return model


def _patches(x: Tensor, size: int) -> Tensor:
    """[H * W, C, size, size], the patch around each pixel of x [1, C, H, W]."""
    padded = F.pad(x, [size // 2, size - 1 - size // 2] * 2)
    windows = padded.unfold(2, size, 1).unfold(3, size, 1)  # [1, C, H, W, size, size]
    return windows[0].permute(1, 2, 0, 3, 4).flatten(0, 1)


@pytest.mark.parametrize(("widths", "kernel_size", "patch"), [((3,), 6, 7), ((3, 4), 4, 13), ((3, 2, 4), 3, 22)])
def test_an_image_is_labelled_as_each_of_its_patches(widths: tuple[int, ...], kernel_size: int, patch: int) -> None:
    model = _build(widths=widths, kernel_size=kernel_size).double()
    assert model.patch_size == patch
    x = checks.image(9, 14, channels=2, dtype=torch.float64)
    with torch.no_grad():
        expected = PatchNet(model.state_dict())(_patches(x, patch))
        torch.testing.assert_close(model.patch_logits(_patches(x, patch)), expected, rtol=0, atol=1e-9)
        dense = model(x)[0].flatten(1).T
        torch.testing.assert_close(dense, expected, rtol=0, atol=1e-9)


def test_a_label_depends_on_its_patch_and_nothing_else() -> None:
    model = _build(widths=(2, 3), kernel_size=2).double()
    assert model.patch_size == 7
    x = checks.image(15, 15, channels=2, dtype=torch.float64).requires_grad_()
    reached = torch.zeros(15, 15, dtype=torch.bool)
    for _ in range(20):  # a maximum passes on the gradient of one element
        data = torch.rand_like(x).requires_grad_()
        (grad,) = torch.autograd.grad(model(data)[0, :, 7, 7].sum(), data)
        reached |= grad[0].abs().sum(0) > 0
    rows, columns = reached.any(1).nonzero().flatten(), reached.any(0).nonzero().flatten()
    assert rows.tolist() == columns.tolist() == list(range(4, 11))


def test_any_size() -> None:
    checks.check_sizes(_build(widths=(4, 5)), 3, [(1, 1), (13, 30)], channels=2)


def test_one_graph() -> None:
    checks.check_graphs(_build(widths=(3, 4)), 11, 17, channels=2)


def test_patches_of_another_size_are_errors() -> None:
    with pytest.raises(ValueError, match="patches must be 19 x 19, got 19 x 20"):
        _build(widths=(3, 4)).patch_logits(torch.zeros(1, 2, 19, 20))


def test_no_blocks_are_an_error() -> None:
    with pytest.raises(ValueError, match="at least one block"):
        _build(widths=())


@pytest.mark.parametrize("freeze", [False, True])
def test_growth_keeps_what_was_learned(freeze: bool) -> None:
    model = _build(widths=(3,), kernel_size=4).double()
    before = {key: value.clone() for key, value in model.blocks[0].state_dict().items()}
    model.grow(5, freeze=freeze)
    assert model.patch_size == 13
    assert all(torch.equal(value, before[key]) for key, value in model.blocks[0].state_dict().items())
    assert [p.requires_grad for p in model.parameters()] == [not freeze] * 2 + [True] * 4
    x = checks.image(5, 6, channels=2, dtype=torch.float64)
    with torch.no_grad():
        patches = model.patch_logits(_patches(x, 13))
        torch.testing.assert_close(model(x)[0].flatten(1).T, patches, rtol=0, atol=1e-9)


def _train(model: SceneParsing, steps: int) -> float:
    """The loss of telling whether everything from two pixels to the right on is bright, after training on patches."""
    optimiser = torch.optim.Adam([p for p in model.parameters() if p.requires_grad], lr=0.02)
    size, first = model.patch_size, 4 - model.patch_size // 2
    for _ in range(steps):
        bright = torch.rand(64, 1, 9, 9).round()
        label = torch.randint(2, (64,))
        bright[..., 6:] = label[:, None, None, None]
        logits = model.patch_logits(bright[:, :, first : first + size, first : first + size])
        loss = F.cross_entropy(logits, label)
        optimiser.zero_grad()
        loss.backward()
        optimiser.step()
    return float(loss.detach())


def test_a_grown_network_sees_what_the_shallow_one_could_not() -> None:
    model = models.create_model(NAME, 2, in_channels=1, widths=(8,), kernel_size=2)
    assert isinstance(model, SceneParsing)
    assert model.patch_size == 3
    shallow = _train(model, 40)
    model.grow(8)
    assert model.patch_size == 7
    deep = _train(model, 80)
    assert shallow > 0.6  # chance is log 2
    assert deep < 0.2


def test_its_own_checkpoint(tmp_path: Path) -> None:
    model = _build(widths=(3, 4), kernel_size=4)
    model.grow(5)
    torch.save({"state_dict": model.state_dict()}, tmp_path / "scene.pth")
    loaded = models.load_official(NAME, tmp_path / "scene.pth").eval()
    x = checks.image(8, 9, channels=2)
    assert torch.equal(loaded(x), model(x))


@pytest.mark.parametrize(
    ("old", "new", "message"),
    [
        ("classifier.bias", None, "missing key 'classifier.bias'"),
        ("blocks.1.conv.bias", "blocks.1.norm.bias", r"no use for the key 'blocks\.1\.norm\.bias'"),
        ("blocks.0.conv.weight", None, r"'blocks\.[01]\.conv\.weight'"),
    ],
)
def test_wrong_keys_are_named(old: str, new: str | None, message: str) -> None:
    state = _build(widths=(3, 4)).state_dict()
    value = state.pop(old)
    if new is not None:
        state[new] = value
    with pytest.raises(ValueError, match=message):
        models.convert_official_state_dict(NAME, state)
