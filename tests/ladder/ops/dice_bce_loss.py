"""dice_bce_loss on the ladder: what its kernels may move, and the limits of their machine code."""

from __future__ import annotations

from tests.ladder.operator import Operator
from tests.ladder.ops import dice_bce_loss_cases as cases

OPERATOR = Operator(
    name="dice_bce_loss",
    cpu=("dice_bce_loss.cpp",),
    cuda=("dice_bce_loss.cu", "dice_bce_loss_backward.cu", "dice_ce_loss_combine.cu"),
    cases={"templates": cases.every_template(), "places": cases.every_place(), "nothing": cases.nothing()},
    large=cases.several_images_of_several_chunks(),
    traffic=(),
    mutants=(),
    mutant_cases=(),
    limits=(),
)
