"""dilated_conv2d and its gradients on the ladder. The driver holds the kernels against the definition."""

from __future__ import annotations

from tests.ladder.operator import Operator, case

OPERATOR = Operator(
    name="dilated_conv",
    cpu=(),
    cuda=("dilated_conv.cu", "dilated_conv_gemm.cu", "dilated_conv_grad_input.cu", "dilated_conv_grad_weight.cu"),
    cases={"forward": [case(dtype="float32")]},
    traffic=(),
    mutants=(),
    mutant_cases=(),
    limits=(),
)
