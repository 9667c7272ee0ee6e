"""Rotary positions against complex rotations, and their scalings against hand-computed values and transformers."""

from __future__ import annotations

import cmath
import copy
import math
import pickle
from collections.abc import Callable
from typing import Any, Literal

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from attnlab.models.multihead import MultiAttention
from attnlab.positions import Rotary, Scaling
from attnlab.utils.tracing import widest_dtype

d, N, H = 10, 7, 3


def x(length: int = N, width: int = d) -> torch.Tensor:
    return torch.randn(2, H, length, width, dtype=torch.float64, generator=torch.Generator().manual_seed(0))


def test_rotary_matches_complex_rotation() -> None:
    out, inputs = Rotary(d, layout="interleaved").apply_rotary(x(), first=5), x()
    for m in range(N):
        for i in range(d // 2):
            before = complex(inputs[1, 2, m, 2 * i], inputs[1, 2, m, 2 * i + 1])
            after = before * cmath.exp(1j * (m + 5) * 10_000 ** (-2 * i / d))
            assert complex(out[1, 2, m, 2 * i], out[1, 2, m, 2 * i + 1]) == pytest.approx(after, abs=1e-12)


def test_the_layouts_are_permutations_of_each_other() -> None:
    order = torch.tensor([0, 5, 1, 6, 2, 7, 3, 8, 4, 9])
    interleaved = Rotary(d, layout="interleaved").apply_rotary(x()[..., order])
    torch.testing.assert_close(Rotary(d).apply_rotary(x())[..., order], interleaved, rtol=0, atol=0)


@given(
    st.integers(0, 10**6),
    st.integers(0, 500),
    st.sampled_from(["half", "interleaved"]),
    st.sampled_from([1.0, 0.4]),
    st.sampled_from([None, Scaling("linear", 3), Scaling("ntk", 3), Scaling("yarn", 3, original_max_length=64)]),
)
def test_scores_depend_on_the_distance_alone(
    shift: int, distance: int, layout: Literal["half", "interleaved"], fraction: float, scaling: Scaling | None
) -> None:
    rotary = Rotary(d, layout=layout, rotary_fraction=fraction, scaling=scaling)
    q, k = x(1), x(1) + 1
    here = (rotary.apply_rotary(q, distance) * rotary.apply_rotary(k, 0)).sum(-1)
    there = (rotary.apply_rotary(q, shift + distance) * rotary.apply_rotary(k, shift)).sum(-1)
    torch.testing.assert_close(here, there, rtol=1e-8, atol=1e-8)


def test_partial_rotary_leaves_the_other_features() -> None:
    out = Rotary(d, rotary_fraction=0.4).apply_rotary(x(), first=3)
    assert torch.equal(out[..., 4:], x()[..., 4:])
    torch.testing.assert_close(out[..., :4], Rotary(4).apply_rotary(x()[..., :4], first=3), rtol=0, atol=0)


# Scaling


def test_scaling_matches_hand_computed_values() -> None:
    plain = [10_000 ** (-i / 4) for i in range(4)]  # 1, 0.1, 0.01, 0.001 radians per position
    assert list(Rotary(8).frequencies) == pytest.approx(plain)
    linear = Rotary(8, scaling=Scaling("linear", 4)).frequencies
    assert list(linear) == pytest.approx([0.25, 0.025, 0.0025, 0.00025])
    ntk = Rotary(8, scaling=Scaling("ntk", 8)).frequencies  # the base times 8^(8/6) = 16
    assert list(ntk) == pytest.approx([1, 0.05, 0.0025, 0.001 / 8])
    # Within 1000 positions the pairs make 159, 16, 1.6 and 0.16 rotations: 32 rotations are between pairs 0 and 1, one
    # is between 2 and 3. So pair 0 is unchanged, pair 3 is divided by 4, and pairs 1 and 2 are interpolated.
    yarn = Rotary(8, scaling=Scaling("yarn", 4, original_max_length=1000))
    expected = [1, 0.1 * (2 / 3 + 1 / 12), 0.01 * (1 / 3 + 2 / 12), 0.00025]
    assert list(yarn.frequencies) == pytest.approx(expected)
    assert yarn.apply_rotary(torch.ones(1, 8)).norm().item() == pytest.approx(8**0.5 * (0.1 * math.log(4) + 1))


@pytest.mark.parametrize("kind", ["linear", "ntk", "yarn"])
def test_a_factor_of_one_changes_nothing(kind: Any) -> None:
    scaled = Rotary(64, scaling=Scaling(kind, 1.0, original_max_length=2048 if kind == "yarn" else None))
    assert scaled.frequencies == pytest.approx(Rotary(64).frequencies)
    assert scaled.attention_factor == 1


@pytest.mark.slow
@pytest.mark.parametrize("base", [10_000.0, 500_000.0])
@pytest.mark.parametrize("width", [12, 64, 128])
@pytest.mark.parametrize("fraction", [1.0, 0.5])
def test_scaling_matches_transformers(base: float, width: int, fraction: float) -> None:
    transformers = pytest.importorskip("transformers")
    rope = pytest.importorskip("transformers.modeling_rope_utils")

    def from_transformers(kind: str, length: int | None = None, **settings: Any) -> tuple[torch.Tensor, float]:
        parameters = {"rope_type": kind, "rope_theta": base, "partial_rotary_factor": fraction, **settings}
        config = transformers.LlamaConfig(
            head_dim=width,
            hidden_size=2 * width,
            num_attention_heads=2,
            max_position_embeddings=2048,
            rope_parameters=parameters,
        )
        frequencies, attention_factor = rope.ROPE_INIT_FUNCTIONS[kind](config, "cpu", length)
        return frequencies.double(), attention_factor

    pairs = {
        Scaling("linear", 4.0): from_transformers("linear", factor=4.0),
        Scaling("ntk", 4.0): from_transformers("dynamic", length=4 * 2048, factor=1.0),
        Scaling("yarn", 4.0, original_max_length=2048): from_transformers(
            "yarn", factor=4.0, original_max_position_embeddings=2048
        ),
    }
    for scaling, (frequencies, attention_factor) in pairs.items():
        rotary = Rotary(width, base=base, rotary_fraction=fraction, scaling=scaling)
        assert list(rotary.frequencies) == pytest.approx(frequencies.tolist(), rel=1e-6, abs=0)
        assert rotary.attention_factor == attention_factor


# As a module


def test_angles_stay_exact_in_low_precision() -> None:
    layer = MultiAttention(24, 2, positions="rotary")
    for moved in (layer.half(), copy.deepcopy(layer).to(torch.bfloat16), pickle.loads(pickle.dumps(layer))):
        assert moved.positions.frequencies == layer.positions.frequencies
        assert not list(moved.positions.buffers())
    far = Rotary(64).apply_rotary(torch.ones(1, 64), first=99_999)
    expected = Rotary(64).apply_rotary(torch.ones(1, 64, dtype=torch.float64), first=99_999)
    torch.testing.assert_close(far.double(), expected, rtol=0, atol=1e-6)


def test_float32_angles_on_apple_gpus() -> None:
    assert widest_dtype(torch.device("mps")) == torch.float32
    assert widest_dtype(torch.device("cuda", 1)) == widest_dtype(torch.device("cpu")) == torch.float64


@pytest.mark.parametrize(
    ("call", "error", "message"),
    [
        (lambda: Rotary(5), ValueError, "rotary positions need an even head_dim, not 5"),
        (lambda: Rotary(8, rotary_fraction=0.1), ValueError, "an even number of rotated features, at least 2, not 1"),
        (lambda: Rotary(8, rotary_fraction=0), ValueError, "not 0"),
        (lambda: Rotary(8, rotary_fraction=1.5), ValueError, "rotary_fraction must be a number from 0 to 1, not 1.5"),
        (lambda: Rotary(8, base=math.nan), ValueError, "base must be a number from 1.001 to 1e.30, not nan"),
        (lambda: Rotary(8, base=1), ValueError, "not 1"),
        (lambda: Rotary(8, base="1e4"), TypeError, "base must be a number, not '1e4'"),
        (lambda: Rotary(8, layout="whole"), ValueError, "layout must be half or interleaved, not 'whole'"),
        (lambda: Scaling("linear", 0.5), ValueError, "factor must be a number from 1 to 1e.09, not 0.5"),
        (lambda: Scaling("linear", True), TypeError, "factor must be a number, not True"),
        (lambda: Scaling("yarn", 2.0), ValueError, "yarn needs original_max_length="),
        (lambda: Scaling("yarn", 2.0, 2.5), TypeError, "original_max_length must be an integer, not 2.5"),
        (lambda: Scaling("ntk", 2.0, 64), ValueError, "original_max_length= is for yarn; ntk scaling does not need"),
        (lambda: Scaling("cubic", 2.0), ValueError, "linear, ntk or yarn, not 'cubic'"),
    ],
)
def test_invalid_arguments_are_refused(call: Callable[[], object], error: type[Exception], message: str) -> None:
    with pytest.raises(error, match=message):
        call()
