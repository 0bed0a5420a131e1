"""Conversions and functions that kernels share; each gives the same result compiled and interpreted."""

from __future__ import annotations

import triton
import triton.language as tl


@triton.jit
def widen(x, T: tl.constexpr):
    """x in the dtype T that the kernel computes in, directly after a load.

    bfloat16 is widened by its bits: the interpreter multiplies the 16-bit integers it keeps them in, and converts
    subnormal numbers wrongly.
    """
    if x.dtype == tl.bfloat16:
        bits = x.to(tl.uint16, bitcast=True).to(tl.uint32) << 16
        return bits.to(tl.float32, bitcast=True).to(T)
    else:
        return x.to(T)


@triton.jit
def narrow(x, dtype: tl.constexpr, INTERPRETING: tl.constexpr):
    """x rounded to nearest even in `dtype`, directly before a store. The interpreter cuts bfloat16 off instead."""
    if INTERPRETING and dtype == tl.bfloat16:
        bits = x.to(tl.uint32, bitcast=True)
        rounded = (bits + 0x7FFF + ((bits >> 16) & 1)) >> 16
        rounded = tl.where(x == x, rounded, 0x7FC0)
        return rounded.to(tl.uint16).to(tl.bfloat16, bitcast=True)
    else:
        return x.to(dtype)


@triton.jit
def fold(x, FOLD: tl.constexpr):
    """Sums of FOLD neighbours along the last of two dimensions."""
    return tl.sum(tl.reshape(x, (x.shape[0], x.shape[1] // FOLD, FOLD)), axis=2)


@triton.jit
def exp_of_difference(x):
    """exp(x) for x <= 0, with small relative error over the whole range; below -88 it is 0 in float32.

    The hardware's 2^x rounds its argument first, which at -80 costs 60 units in the last place. Therefore
    x = n log 2 + r, with log 2 in two parts of which the first has few enough bits for an exact product (Cody and
    Waite), and 2^n is put together from its exponent bits: adding 1.5 * 2^23 leaves n in the lowest bits of a float.
    """
    if x.dtype == tl.float64:
        return tl.exp(x)
    else:
        x = tl.maximum(x, -88.0, propagate_nan=tl.PropagateNan.ALL)
        shifted = x * 1.4426950408889634 + 12583039.0
        n = shifted - 12583039.0
        r = (x - n * 0.693359375) + n * 2.12194440e-4
        return tl.exp(r) * (shifted.to(tl.int32, bitcast=True) << 23).to(tl.float32, bitcast=True)


@triton.jit
def log1p(x):
    """log(1 + x) for 0 <= x <= 1, with small relative error also where x vanishes beside 1.

    In float32 x + x^2 q(x), where q has the least relative error of the sum on [0, 1] (3e-8); in float64 by Kahan's
    quotient: log(u) / (u - 1) hardly differs from log(1 + x) / x where u is 1 + x rounded.
    """
    if x.dtype == tl.float64:
        u = 1.0 + x
        return tl.where(u == 1.0, x, tl.log(u) * (x / (u - 1.0)))
    else:
        q = x * 0.005364815704524517 - 0.030065758153796196
        q = q * x + 0.07920447736978531
        q = q * x - 0.13753797113895416
        q = q * x + 0.1915365308523178
        q = q * x - 0.24857163429260254
        q = q * x + 0.3332132399082184
        q = q * x - 0.49999648332595825
        return x + x * x * q
