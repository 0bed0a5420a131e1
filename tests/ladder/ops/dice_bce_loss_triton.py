"""Limits on the machine code of dice_bce_loss's Triton kernels; 128-bit accesses depend on the case."""

from __future__ import annotations

from tests.ladder.operator import Limit

LIMITS = (
    Limit(r"triton dice_bce_loss_(?:statistics|backward) \(float64.*", 160, calls=("subroutine",)),
    Limit(r"triton dice_bce_loss_statistics \((?:float32|bfloat16), .* contiguous.*", 96, at_least={"ldg128": 1}),
    Limit(r"triton dice_bce_loss_statistics \((?:float32|bfloat16), .* channels_last.*", 96),
    Limit(
        r"triton dice_bce_loss_backward \((?:float32|bfloat16), .* contiguous.*",
        80,
        at_least={"ldg128": 1, "stg128": 1},
    ),
    Limit(r"triton dice_bce_loss_backward \((?:float32|bfloat16), .* channels_last.*", 64),
    # The row and the column of the first pixel are a division in 64 bits, as is the position of a bad label.
    Limit(r"triton dice_bce_loss_statistics \(coarse.*", 128, calls=("subroutine",)),
    Limit(r"triton dice_bce_loss_coarse_gather .*", 128, calls=("subroutine",)),
    Limit(r"triton dice_bce_loss_sums .*", 64, calls=("subroutine",)),
)
