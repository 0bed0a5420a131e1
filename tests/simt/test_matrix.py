"""Matrix instructions against the tables of the PTX manual, stated here once more, element by element.

PTX ISA, "Matrix Fragments for mma.m16n8k16 with floating point type", "... for mma.m16n8k8" and "Warp-level matrix load
instruction: ldmatrix": groupID = lane >> 2, threadID_in_group = lane % 4.
"""

from __future__ import annotations

import numpy as np
import pytest

LANES = 32


def a_of_16x8x16(lane: int, i: int) -> tuple[int, int]:
    group, thread = lane >> 2, lane % 4
    row = group if 0 <= i < 2 or 4 <= i < 6 else group + 8
    column = thread * 2 + (i & 1) if i < 4 else thread * 2 + (i & 1) + 8
    return row, column


def b_of_16x8x16(lane: int, i: int) -> tuple[int, int]:
    group, thread = lane >> 2, lane % 4
    row = thread * 2 + (i & 1) if i < 2 else thread * 2 + (i & 1) + 8
    return row, group


def a_of_16x8x8(lane: int, i: int) -> tuple[int, int]:
    group, thread = lane >> 2, lane % 4
    row = group if i in (0, 2) else group + 8
    column = thread if i in (0, 1) else thread + 4
    return row, column


def b_of_16x8x8(lane: int, i: int) -> tuple[int, int]:
    group, thread = lane >> 2, lane % 4
    return (thread if i == 0 else thread + 4), group


def c_of_16x8(lane: int, i: int) -> tuple[int, int]:
    group, thread = lane >> 2, lane % 4
    return (group if i < 2 else group + 8), thread * 2 + (i & 1)


def bfloat16_bits(x: np.ndarray) -> np.ndarray:
    return (x.astype(np.float32).view(np.uint32) >> 16).astype(np.uint16)


#: matrix -> number in run_mma, depth, tables of a and b, elements of a lane, bits of an element
FORMATS = {
    "bf16": (0, 16, a_of_16x8x16, b_of_16x8x16, 8, 4, bfloat16_bits),
    "f16": (1, 16, a_of_16x8x16, b_of_16x8x16, 8, 4, lambda x: x.astype(np.float16).view(np.uint16)),
    "tf32": (2, 8, a_of_16x8x8, b_of_16x8x8, 4, 2, lambda x: x.astype(np.float32).view(np.uint32)),
}


def fragments(matrices: np.ndarray, table, count: int) -> np.ndarray:
    """[tiles, rows, columns] -> [tiles, lanes, count]"""
    places = np.array([[table(lane, i) for i in range(count)] for lane in range(LANES)])
    return matrices[:, places[..., 0], places[..., 1]]


def multiply(kernels, matrix: str, a: np.ndarray, b: np.ndarray, c: np.ndarray) -> np.ndarray:
    """[tiles, 16, k], [tiles, k, 8], [tiles, 16, 8] -> [tiles, 16, 8] by way of each lane's registers."""
    number, _, a_table, b_table, a_count, b_count, bits = FORMATS[matrix]
    tiles = len(a)
    a_registers = np.ascontiguousarray(bits(fragments(a, a_table, a_count))).view(np.uint32)
    b_registers = np.ascontiguousarray(bits(fragments(b, b_table, b_count))).view(np.uint32)
    c_registers = np.ascontiguousarray(fragments(c, c_of_16x8, 4), np.float32)
    d_registers = np.full((tiles, LANES, 4), np.nan, np.float32)
    kernels.run("run_mma", number, tiles, a_registers, b_registers, c_registers, d_registers)
    d = np.full((tiles, 16, 8), np.nan, np.float32)
    for lane in range(LANES):
        for i in range(4):
            d[(slice(None), *c_of_16x8(lane, i))] = d_registers[:, lane, i]
    return d


@pytest.mark.parametrize("matrix", FORMATS)
def test_tables_cover_each_element_once(matrix):
    _, depth, a_table, b_table, a_count, b_count, _ = FORMATS[matrix]
    for table, count, shape in (
        (a_table, a_count, (16, depth)),
        (b_table, b_count, (depth, 8)),
        (c_of_16x8, 4, (16, 8)),
    ):
        places = sorted(table(lane, i) for lane in range(LANES) for i in range(count))
        assert places == [(row, column) for row in range(shape[0]) for column in range(shape[1])]


@pytest.mark.parametrize("matrix", FORMATS)
def test_each_position_of_a_b_and_c(plain, matrix):
    depth = FORMATS[matrix][1]
    # One element of a picks a row of b, whose elements all differ; the same with b; c comes through.
    one = np.eye(16 * depth, dtype=np.float32).reshape(-1, 16, depth)
    b = np.broadcast_to(np.arange(1, depth * 8 + 1, dtype=np.float32).reshape(depth, 8), (len(one), depth, 8))
    zeros = np.zeros((len(one), 16, 8), np.float32)
    assert np.array_equal(multiply(plain, matrix, one, b, zeros), one @ b)

    one = np.eye(depth * 8, dtype=np.float32).reshape(-1, depth, 8)
    a = np.broadcast_to(np.arange(1, 16 * depth + 1, dtype=np.float32).reshape(16, depth), (len(one), 16, depth))
    zeros = np.zeros((len(one), 16, 8), np.float32)
    assert np.array_equal(multiply(plain, matrix, a, one, zeros), a @ one)

    c = np.eye(16 * 8, dtype=np.float32).reshape(-1, 16, 8)
    a, b = np.zeros((len(c), 16, depth), np.float32), np.zeros((len(c), depth, 8), np.float32)
    assert np.array_equal(multiply(plain, matrix, a, b, c), c)


@pytest.mark.parametrize("matrix", FORMATS)
def test_products_of_integers_are_exact(kernels, matrix):
    random, depth = np.random.default_rng(0), FORMATS[matrix][1]
    a, b = (random.integers(-9, 10, shape).astype(np.float32) for shape in ((3, 16, depth), (3, depth, 8)))
    c = random.integers(-99, 100, (3, 16, 8)).astype(np.float32)
    assert np.array_equal(multiply(kernels, matrix, a, b, c), a @ b + c)


def test_tf32_loses_its_low_bits(plain):
    a, b, c = (np.zeros(shape, np.float32) for shape in ((1, 16, 8), (1, 8, 8), (1, 16, 8)))
    a[0, 0, 0], b[0, 0, 0] = 1 + 2**-10 + 2**-11, 1
    assert multiply(plain, "tf32", a, b, c)[0, 0, 0] == np.float32(1 + 2**-10)


@pytest.mark.parametrize("transposed", [False, True])
def test_ldmatrix(kernels, transposed):
    x = np.arange(1, 257, dtype=np.uint16).reshape(4, 8, 8)
    out = np.zeros((LANES, 4, 2), np.uint16)
    kernels.run("run_ldmatrix", x, out, transposed)
    for lane in range(LANES):
        for matrix in range(4):
            for i in range(2):
                row, column = lane >> 2, 2 * (lane % 4) + i
                expected = x[matrix, column, row] if transposed else x[matrix, row, column]
                assert out[lane, matrix, i] == expected
