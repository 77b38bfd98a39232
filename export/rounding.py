"""Weights rounded to few bits, in blocks of inputs that share a scale."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor

import numpy as np

from export.runtime.cpu import allowed_cpus

TINY = 1e-12  # keeps the scale of a block of zeros positive
_DAMPING = 0.01  # of the mean square of an input, as in the paper
_OUTPUTS = 4096  # rounded together, so that a block of them stays in a core's cache


def nearest(weight: np.ndarray, bits: int, size: int) -> tuple[np.ndarray, np.ndarray]:
    """Round [outputs, inputs] to the nearest steps, `size` inputs of an output with a scale of their own.

    Returns:
        Steps uint8 [outputs, blocks, size], of which 2**(bits-1) is zero, and scales float32 [outputs, blocks], signed
        such that the largest magnitude takes the value furthest from zero. The last block is filled up with zeros.
    """
    zero = 1 << (bits - 1)
    blocks = np.pad(weight, ((0, 0), (0, -weight.shape[1] % size))).reshape(len(weight), -1, size)
    scale = _scale(blocks, zero, axis=2)
    steps = np.rint(blocks / scale[..., None]) + zero
    return np.clip(steps, 0, 2 * zero - 1).astype(np.uint8), scale


def compensated(weight: np.ndarray, moments: np.ndarray, bits: int, size: int) -> tuple[np.ndarray, np.ndarray]:
    """As `nearest`, each input's error made good by the inputs that are still to be rounded (GPTQ, arXiv 2210.17323).

    With 4 bits it takes more than half of what rounding FLAN-T5-small costs: the divergence from fp32's next tokens on
    DialogSum falls from 0.024 to 0.010.

    Args:
        weight: [outputs, inputs].
        moments: [inputs, inputs], sums of products of the layer's inputs over rows of a calibration.
        bits: of a step.
        size: of a block.
    """
    zero, inputs = 1 << (bits - 1), weight.shape[1]
    padded = inputs + -inputs % size
    damped = np.eye(padded) * max(_DAMPING * float(np.mean(np.diag(moments))), TINY)
    damped[:inputs, :inputs] += moments
    factor = np.linalg.cholesky(np.linalg.inv(damped)).T.astype(np.float32)  # upper: each input's share in later ones

    def round_some(first: int) -> tuple[np.ndarray, np.ndarray]:
        rest = np.zeros((padded, len(weight[first : first + _OUTPUTS])), np.float32)
        rest[:inputs] = weight[first : first + _OUTPUTS].T
        steps, scales = np.empty(rest.shape, np.uint8), []
        for begin in range(0, padded, size):
            end = begin + size
            block = rest[begin:end]
            scale = _scale(block, zero, axis=0)
            errors = np.empty_like(block)
            for i, row in enumerate(block):
                step = np.clip(np.rint(row / scale), -zero, zero - 1)
                steps[begin + i] = step + zero
                shares = factor[begin + i, begin:end]
                errors[i] = (row - step * scale) / shares[i]
                block[i + 1 :] -= shares[i + 1 :, None] * errors[i]
            rest[end:] -= factor[begin:end, end:].T @ errors
            scales.append(scale)
        return steps.T.reshape(rest.shape[1], -1, size), np.stack(scales, axis=1)

    with ThreadPoolExecutor(allowed_cpus()) as pool:
        steps, scales = zip(*pool.map(round_some, range(0, len(weight), _OUTPUTS)), strict=True)
    return np.concatenate(steps), np.concatenate(scales)


def _scale(blocks: np.ndarray, zero: int, axis: int) -> np.ndarray:
    peak = np.take_along_axis(blocks, np.expand_dims(np.abs(blocks).argmax(axis), axis), axis).squeeze(axis)
    return np.where(peak == 0, TINY, -peak / zero).astype(np.float32)
