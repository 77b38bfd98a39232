"""The layout of packed matrices, and the preview of a matrix of bytes in 4 bits."""

from __future__ import annotations

import ctypes
from typing import Any

import numpy as np
import pytest

package = pytest.importorskip("lora_ft_kernels", reason="lora-ft-kernels is not installed; see `make kernels`")

from lora_ft_kernels.blocks import Block  # noqa: E402
from lora_ft_kernels.matrices import TILE, Matrix, pack, preview_of, shapes_of  # noqa: E402


def array_at(address: int, shape: tuple[int, ...], kind: Any) -> np.ndarray:
    """Return the array at an address."""
    return np.ctypeslib.as_array(ctypes.cast(address, ctypes.POINTER(kind)), shape)


@pytest.mark.parametrize(("bits", "group"), [(8, 0), (8, 16), (4, 32)])
@pytest.mark.parametrize("outputs", [64, 83])
def test_weights_lie_in_the_order_of_products(bits: int, group: int, outputs: int) -> None:
    rng, inputs, half = np.random.default_rng(0), 96, 1 << (bits - 1)
    stored = rng.integers(0, 2 * half, (outputs, inputs)).astype(np.uint8)
    scales = rng.uniform(0.5, 1.5, (outputs, inputs // (group or inputs))).astype(np.float32)
    if not group:
        matrix = Matrix((stored.T ^ 128).view(np.int8), scales[:, 0])
    else:
        values = stored if bits == 8 else stored[:, 0::2] | stored[:, 1::2] << 4
        matrix = Matrix(values, scales, bits, group)
    block = Block(shapes_of(matrix))
    packed, stride = pack(block, 7, matrix), 128
    assert (packed.outputs, packed.inputs, packed.number, packed.stride) == (outputs, inputs, 7, stride)
    assert packed.values % 64 == packed.scales % 64 == 0
    weights = array_at(packed.values, (3 if outputs > 64 else 2, stride * bits // 32, TILE, 4), ctypes.c_uint8)
    by_tile = array_at(packed.scales, (len(weights), scales.shape[1], TILE), ctypes.c_float)
    for output in range(len(weights) * TILE):
        lane = output // TILE, slice(None), output % TILE
        whole = weights[lane]  # [fours, 4]
        row = whole.reshape(-1) if bits == 8 else np.stack([whole & 15, whole >> 4], axis=1).reshape(-1)
        expected = np.full(stride, half)
        if output < outputs:
            expected[:inputs] = stored[output]
        assert np.array_equal(row, expected)
        assert np.array_equal(by_tile[lane], scales[output] if output < outputs else 0 * scales[0])


@pytest.mark.parametrize("group", [0, 64, 256])
def test_the_preview_is_the_nearest_of_16_values(group: int) -> None:
    rng, outputs, inputs = np.random.default_rng(1), 300, 256
    values = (rng.standard_normal((outputs, inputs)) * rng.uniform(1, 60, (outputs, 1))).clip(-127, 127).astype(np.int8)
    values[0] = 0
    groups = inputs // (group or inputs)
    scales = rng.uniform(0.5, 1.5, (outputs, groups)).astype(np.float32)
    head = Matrix(values.view(np.uint8) ^ 128, scales, 8, group) if group else Matrix(values.T, scales[:, 0])
    preview, losses = preview_of(head)
    assert (preview.bits, preview.group, preview.inputs) == (4, 64 if group == 64 else 128, inputs)
    fours = preview.rows().astype(np.float64).reshape(outputs, -1, preview.group) - 8
    rounded = (fours * preview.scales[..., None]).reshape(outputs, inputs)
    exact = values * scales.repeat(inputs // groups, axis=1)
    steps = preview.scales.repeat(preview.group, axis=1)
    inside = exact < 7.5 * steps  # the highest of 16 values is 7
    assert (np.abs(rounded - exact) <= 0.501 * steps)[inside].all()
    assert np.allclose(losses, np.sqrt(((rounded - exact) ** 2).sum(axis=1)), rtol=1e-4, atol=1e-6)
