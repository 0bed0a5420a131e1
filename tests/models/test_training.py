"""A training step of a network of each family, in float64: gradients for all parameters, the same bits every time."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from segops.models.registry import FAMILIES
from tests.models import checks
from tests.models.test_compile import NETWORKS

NAMES = (
    "scene_parsing_2009",
    "fcn8s",
    "unet",
    "segnet_basic",
    "deconvnet",
    "dilation7_kitti",
    "drn_d_22",
    "hourglass2",
    "hrnet_w18_small_v1",
    "basnet",
    "u2netp",
    "oct_resnet50",
    "csnet_x1",
    "fcn_resnet50",
)


def test_every_family_is_here() -> None:
    assert [sum(name in names for name in NAMES) for names in FAMILIES.values()] == [1] * len(FAMILIES)


def step(name: str) -> dict[str, Tensor]:
    """Gradients of one step of a network with fresh weights, its buffers after it, and its logits in eval mode."""
    options, size = NETWORKS[name]
    torch.manual_seed(1)
    model = checks.build(name, 2, **options).double().train()
    x = checks.image(*size, batch=2, dtype=torch.float64)
    torch.manual_seed(2)  # of dropout
    outputs = checks.as_list(model(x))
    assert all(output.dtype == torch.float64 for output in outputs)
    sum(output.square().mean() for output in outputs).backward()
    found = {f"{key}.grad": p.grad for key, p in model.named_parameters() if p.grad is not None}
    found |= {key: buffer.clone() for key, buffer in model.named_buffers()}
    with torch.no_grad():
        found["logits"] = model.eval()(x)
    return found


@pytest.mark.parametrize("name", NAMES)
def test_a_step_in_float64_is_the_same_every_time(name: str) -> None:
    first, again = step(name), step(name)
    assert len(first) > 2
    assert first.keys() == again.keys()
    assert all(bool(torch.isfinite(value).all()) for value in first.values())
    assert {key for key in first if not torch.equal(first[key], again[key])} == set()
