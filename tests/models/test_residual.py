"""The residual blocks against torchvision's."""

from __future__ import annotations

from typing import Any

import pytest
import torch
import torchvision
from torch import nn

from segops.models import official
from segops.models.residual import RULES, BasicBlock, Bottleneck, stage
from tests.models import checks


def converted(theirs: nn.Module) -> dict[str, torch.Tensor]:
    state = official.tensors(theirs.state_dict())
    return official.renamed("block", state, RULES)


@pytest.mark.parametrize("name", ["BasicBlock", "Bottleneck"])
@pytest.mark.parametrize(("in_channels", "stride"), [(16, 1), (16, 2), (6, 1)])
def test_block_is_torchvision_s(name: str, in_channels: int, stride: int) -> None:
    kind: Any = {"BasicBlock": BasicBlock, "Bottleneck": Bottleneck}[name]
    width = 16 // kind.expansion
    ours = kind(in_channels, width, stride).double()
    has_downsample = ours.downsample is not None
    assert has_downsample == ((in_channels, stride) != (16, 1))
    shortcut = None
    if has_downsample:
        shortcut = nn.Sequential(nn.Conv2d(in_channels, 16, 1, stride, bias=False), nn.BatchNorm2d(16))
    theirs = getattr(torchvision.models.resnet, name)(in_channels, width, stride, shortcut).double()
    checks.shake(theirs)
    state = converted(theirs)
    ours.load_state_dict(official.with_counters(state, ours.state_dict()))
    x = checks.image(7, 9, in_channels, batch=2, dtype=torch.float64)
    for training in (False, True):
        torch.testing.assert_close(ours.train(training)(x), theirs.train(training)(x), rtol=0, atol=1e-12)


def test_a_stage_s_first_block_may_differ() -> None:
    blocks = stage(Bottleneck, 8, 2, 3, stride=2, dilation=4, first_dilation=2)
    assert [b.conv2.conv.dilation[0] for b in blocks] == [2, 4, 4]
    assert [b.conv2.conv.stride[0] for b in blocks] == [2, 1, 1]
    assert blocks(checks.image(9, 11, 8, batch=2)).shape == (2, 8, 5, 6)


def test_without_residual_it_is_two_convolutions() -> None:
    block = BasicBlock(3, 5, residual=False).eval()
    x = checks.image(6, 6)
    torch.testing.assert_close(block(x), block.conv2(block.conv1(x)))
    assert block.downsample is None
