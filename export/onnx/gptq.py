"""Round weights to 4 or 8 bits, in blocks of inputs that share a scale."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor

import numpy as np

from lora_ft.core.hardware import allowed_cpus

TINY = 1e-12  # keeps the scale of a block of zeros positive
_DAMPING = 0.01  # share of the mean square of an input, as in the paper
_SHARES = np.array([sign * part for part in np.linspace(1, 0.6, 9) for sign in (1, -1)], np.float32)  # of the widest
_OUTPUTS = 4096  # outputs rounded together, so that a block stays in the cache of a core


def round_to_nearest(weight: np.ndarray, bits: int, size: int) -> tuple[np.ndarray, np.ndarray]:
    """Round [outputs, inputs] to the nearest steps, with a scale for each block of `size` inputs of an output.

    Returns:
        (steps, scales). Steps are uint8 [outputs, blocks, size], where 2**(bits-1) is zero. Scales are float32
        [outputs, blocks], signed so that the largest magnitude gets the step furthest from zero. The last block is
        padded with zeros.
    """
    zero = 1 << (bits - 1)
    blocks = np.pad(weight, ((0, 0), (0, -weight.shape[1] % size))).reshape(len(weight), -1, size)
    scale = _scale(blocks, zero, axis=2)
    steps = np.rint(blocks / scale[..., None]) + zero
    return np.clip(steps, 0, 2 * zero - 1).astype(np.uint8), scale


def round_with_compensation(
    weight: np.ndarray, moments: np.ndarray, bits: int, size: int
) -> tuple[np.ndarray, np.ndarray]:
    """Round like `round_to_nearest`, but compensate each input's error in later inputs (GPTQ, arXiv 2210.17323).

    Inputs with the largest moments are rounded first (GPTQ's `act_order` with static groups). Each block uses the best
    of several scales. With 4 bits this removes more than half of the rounding loss of FLAN-T5-small. Order and scales
    contribute a tenth of that, in blocks of 128.

    Args:
        weight: Weights [outputs, inputs].
        moments: Sums of products of the layer's inputs over calibration rows [inputs, inputs].
        bits: Bits per step.
        size: Inputs per block.
    """
    zero, inputs = 1 << (bits - 1), weight.shape[1]
    padded = inputs + -inputs % size
    damped = np.eye(padded) * max(_DAMPING * float(np.mean(np.diag(moments))), TINY)
    damped[:inputs, :inputs] += moments
    order = np.argsort(-np.diag(damped), kind="stable")
    inverse = np.linalg.inv(damped[np.ix_(order, order)])
    factor = np.linalg.cholesky(inverse).T.astype(np.float32)  # upper: each input's share in later ones
    weights = np.diag(damped).astype(np.float32)

    def round_some(first: int) -> tuple[np.ndarray, np.ndarray]:
        remaining = np.zeros((padded, len(weight[first : first + _OUTPUTS])), np.float32)
        remaining[:inputs] = weight[first : first + _OUTPUTS].T
        starts = range(0, padded, size)
        scales = np.stack([_best_scale(remaining[at : at + size], weights[at : at + size], zero) for at in starts])
        remaining, steps = remaining[order], np.empty(remaining.shape, np.uint8)
        for begin in starts:
            end = begin + size
            block = remaining[begin:end]
            errors = np.empty_like(block)
            for i, (row, at) in enumerate(zip(block, order[begin:end], strict=True)):
                scale = scales[at // size]
                step = np.clip(np.rint(row / scale), -zero, zero - 1)
                steps[at] = step + zero
                shares = factor[begin + i, begin:end]
                errors[i] = (row - step * scale) / shares[i]
                block[i + 1 :] -= shares[i + 1 :, None] * errors[i]
            remaining[end:] -= factor[begin:end, end:].T @ errors
        return steps.T.reshape(remaining.shape[1], -1, size), scales.T

    with ThreadPoolExecutor(allowed_cpus()) as pool:
        steps, scales = zip(*pool.map(round_some, range(0, len(weight), _OUTPUTS)), strict=True)
    return np.concatenate(steps), np.concatenate(scales)


def _scale(blocks: np.ndarray, zero: int, axis: int) -> np.ndarray:
    peak = np.take_along_axis(blocks, np.expand_dims(np.abs(blocks).argmax(axis), axis), axis).squeeze(axis)
    return np.where(peak == 0, TINY, -peak / zero).astype(np.float32)


def _best_scale(block: np.ndarray, weights: np.ndarray, zero: int) -> np.ndarray:
    """Return the scale of each output of a block [inputs, outputs] with the least squared error, weighted by input."""
    widest = _scale(block, zero, axis=0)
    best, least = widest, np.full(len(widest), np.inf, np.float32)
    for share in _SHARES:
        scale = widest * share
        error = np.clip(np.rint(block / scale), -zero, zero - 1) * scale - block
        cost = weights @ np.square(error)
        best, least = np.where(cost < least, scale, best), np.minimum(cost, least)
    return best
