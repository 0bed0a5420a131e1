"""Loss modules are their functions with the options held."""

import inspect

import pytest
import torch

import segops
from segops.nn import DeepSupervisionLoss, DiceBCELoss, DiceCELoss
from tests.cases import make_logits, random_labels


@pytest.mark.parametrize(
    ("function", "module"), [(segops.dice_ce_loss, DiceCELoss), (segops.dice_bce_loss, DiceBCELoss)]
)
def test_module_has_the_function_s_options(function, module):
    function = inspect.signature(function).parameters
    module = inspect.signature(module.__init__).parameters
    missing = set(function) - set(module) - {"logits", "target", "pixel_weight"}
    assert not missing
    assert all(module[name].default == function[name].default for name in module if name != "self")


def test_module_equals_function():
    logits, target = make_logits((2, 4, 9, 7)), random_labels((2, 9, 7), 4)
    weight = torch.tensor([0.5, 1.0, 2.0, 3.0])
    pixel_weight = torch.rand(2, 9, 7, generator=torch.Generator().manual_seed(5))
    options = {"overlap": ("tversky", 0.3, 0.7), "label_smoothing": 0.1, "batch_dice": True, "dice_weight": 0.5}
    module = DiceCELoss(weight=weight, dice_class_weight=weight.flip(0), **options)
    expected = segops.dice_ce_loss(
        logits, target, weight=weight, dice_class_weight=weight.flip(0), pixel_weight=pixel_weight, **options
    )
    assert torch.equal(module(logits, target, pixel_weight), expected)
    assert module.state_dict() == {}
    assert module.double().weight.dtype == torch.float64
    assert "label_smoothing=0.1" in repr(module)


def test_deep_supervision_module_equals_function():
    heads = [make_logits((2, 4, 18 // step, 14 // step), seed=step) for step in (1, 2, 5)]
    target = random_labels((2, 18, 14), 4)
    weight = torch.tensor([0.5, 1.0, 2.0, 3.0])
    pixel_weight = torch.rand(2, 18, 14, generator=torch.Generator().manual_seed(5))
    weights, options = (1.0, 0.5, 0.25), {"overlap": "jaccard", "align_corners": True}
    module = DeepSupervisionLoss(weights, weight=weight, **options)
    expected = segops.deep_supervision_loss(heads, target, weights, weight=weight, pixel_weight=pixel_weight, **options)
    assert torch.equal(module(heads, target, pixel_weight), expected)
    assert module.state_dict() == {}
    assert "weights=[1.0, 0.5, 0.25]" in repr(module)
    _, parts = DeepSupervisionLoss(weights, return_parts=True)(heads, target)
    assert len(parts) == 3


def test_binary_module_equals_function():
    logits, target = make_logits((2, 3, 9, 7)), random_labels((2, 3, 9, 7), 2).bool()
    pos_weight = torch.tensor([0.5, 1.0, 2.0])
    pixel_weight = torch.rand(2, 9, 7, generator=torch.Generator().manual_seed(5))
    options = {"overlap": ("tversky", 0.3, 0.7), "focal_gamma": 1.5, "batch_dice": True, "dice_weight": 0.5}
    module = DiceBCELoss(pos_weight=pos_weight, **options)
    expected = segops.dice_bce_loss(logits, target, pos_weight=pos_weight, pixel_weight=pixel_weight, **options)
    assert torch.equal(module(logits, target, pixel_weight), expected)
    assert module.state_dict() == {}
    assert module.double().pos_weight.dtype == torch.float64
    assert "focal_gamma=1.5" in repr(module)


def test_binary_deep_supervision_module_equals_function():
    heads = [make_logits((2, 18 // step, 14 // step), seed=step) for step in (1, 2, 5)]
    target = random_labels((2, 18, 14), 2).bool()
    weights, options = (1.0, 0.5, 0.25), {"pos_weight": torch.tensor(2.0), "align_corners": True}
    expected = segops.deep_supervision_loss(heads, target, weights, loss="dice_bce", **options)
    assert torch.equal(DeepSupervisionLoss(weights, loss="dice_bce", **options)(heads, target), expected)
    with pytest.raises(ValueError, match='loss must be "dice_ce" or "dice_bce", got \'dice\''):
        DeepSupervisionLoss(weights, loss="dice")
