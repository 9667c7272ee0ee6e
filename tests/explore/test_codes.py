"""One byte per weight: the error is bounded, and zero, the peak and signs are exact."""

from __future__ import annotations

import base64
import zlib

import hypothesis.extra.numpy as arrays
import numpy as np
import torch
from hypothesis import given
from hypothesis import strategies as st

from attnlab.explore import codes

UNSIGNED = arrays.arrays(np.float32, (3, 5), elements=st.floats(0, 1, width=32))
SIGNED = arrays.arrays(np.float32, (3, 5), elements=st.floats(-7, 7, width=32))


@given(UNSIGNED)
def test_the_error_is_at_most_four_thousandths_of_the_peak(values: np.ndarray) -> None:
    weights = torch.from_numpy(values)
    peak = weights.max()
    decoded = codes.decode(codes.encode(weights, peak, signed=False), peak, signed=False)
    assert (decoded - weights).abs().max() <= 0.004 * peak + 1e-30


@given(SIGNED)
def test_signed_weights_keep_their_sign(values: np.ndarray) -> None:
    weights = torch.from_numpy(values)
    peak = weights.abs().max()
    decoded = codes.decode(codes.encode(weights, peak, signed=True), peak, signed=True)
    assert (decoded - weights).abs().max() <= 0.008 * peak + 1e-30
    assert (decoded * weights >= 0).all()


@given(SIGNED, st.integers(15, 255), st.booleans())
def test_fewer_levels_round_more(values: np.ndarray, levels: int, signed: bool) -> None:
    weights = torch.from_numpy(values if signed else np.abs(values))
    peak = weights.abs().max()
    shown = codes.encode(weights, peak, signed=signed, levels=levels)
    error = (codes.decode(shown, peak, signed=signed, levels=levels) - weights).abs().max()
    assert error <= 1.001 * codes.rounding(float(peak), levels, signed=signed) + 1e-30


def test_zero_and_the_peak_are_exact() -> None:
    weights = torch.tensor([0.0, 0.7, -0.7])
    peak = torch.tensor(0.7)
    assert codes.encode(weights, peak, signed=True).tolist() == [128, 255, 1]
    assert codes.encode(weights[:2], peak, signed=False).tolist() == [0, 255]
    assert torch.equal(codes.decode(codes.encode(weights, peak, signed=True), peak, signed=True), weights)


def test_a_head_without_weight_is_all_zero() -> None:
    weights, peak = torch.zeros(2, 3), torch.tensor(0.0)
    assert codes.decode(codes.encode(weights, peak, signed=False), peak, signed=False).abs().max() == 0


def test_deflated_bytes_are_read_back_by_zlib() -> None:
    assert zlib.decompress(base64.b64decode(codes.deflated(b"weights" * 11))) == b"weights" * 11
