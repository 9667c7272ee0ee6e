"""The forms of the scan against the formula and each other, and its matrix, in float64; sizes are distinct primes."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from scans import FORMS, KINDS, B, Case, H, by_hand, d, leaves, part, scan_case, w
from torch import Tensor
from torch.autograd import forward_ad

from attnlab.masks import documents
from attnlab.ops.attention_map import CHUNK
from attnlab.ops.dispatch import record_dispatch
from attnlab.ops.scan import ScanMap, linear_scan

CHUNKS = (1, 4, 7, 64)
every_kind = pytest.mark.parametrize("kind", KINDS)
pytestmark = pytest.mark.usefixtures("short_blocks")


def with_gradients(case: Case, **options: Any) -> tuple[Tensor, ...]:
    """The outputs, the last state, and the gradients of every input through both."""
    case = leaves(case)
    out, state = linear_scan(**case, **options)
    return out, state, *torch.autograd.grad(out.square().sum() + state.sin().sum(), tuple(case.values()))


def close(actual: Any, expected: Any, atol: float = 1e-10) -> None:
    torch.testing.assert_close(actual, expected, rtol=0, atol=atol)


@every_kind
def test_the_recurrent_form_is_the_formula(kind: str) -> None:
    case = scan_case(kind, 11)
    close(linear_scan(**case, form="recurrent"), by_hand(case))


@every_kind
@pytest.mark.parametrize("N", [1, 2, 5, 37])
def test_the_forms_agree(kind: str, N: int) -> None:
    case = scan_case(kind, N)
    expected, low = with_gradients(case, form="recurrent"), scan_case(kind, N, torch.float32)
    for form in FORMS:
        for chunk in CHUNKS:
            close(with_gradients(case, form=form, chunk=chunk), expected)
        out, state = linear_scan(**low, form=form, chunk=8)
        assert out.dtype == state.dtype == torch.float32
        close((out.double(), state.double()), expected[:2], atol=3e-5)


@given(st.sampled_from(KINDS), st.integers(0, 41), st.sampled_from(CHUNKS), st.sampled_from(FORMS[:2]))
def test_a_scan_resumes_from_its_state(kind: str, cut: int, chunk: int, then: str) -> None:
    case = scan_case(kind, 41)
    out, last = linear_scan(**case, chunk=chunk)
    first, state = linear_scan(**part(case, slice(0, cut), case["state"]), chunk=chunk)
    second, state = linear_scan(**part(case, slice(cut, 41), state), form=then, chunk=chunk)
    close((torch.cat([first, second], 2), state), (out, last))


@given(st.sampled_from(KINDS), st.lists(st.integers(0, 19), max_size=5), st.sampled_from(FORMS), st.booleans())
def test_segments_are_independent(kind: str, lengths: list[int], form: str, started: bool) -> None:
    case = scan_case(kind, sum(lengths))
    ends = [sum(lengths[: i + 1]) for i in range(len(lengths))]
    segments = [slice(end - length, end) for end, length in zip(ends, lengths, strict=True)]
    state = case.pop("state")
    states = torch.arange(len(lengths)).view(-1, 1, 1, 1, 1) * state if started else None
    out, last = linear_scan(**case, state=states, segments=segments, form=form, chunk=4)
    assert out.shape == case["v"].shape
    assert last.shape == (len(segments), B, H, d, w)
    for i, rows in enumerate(segments):
        first = torch.zeros_like(state) if states is None else states[i]
        alone = linear_scan(**part(case, rows, first), form="recurrent")
        close((out[:, :, rows], last[i]), alone)


def test_gradients_of_segments() -> None:
    case = scan_case("delta rule, vector decay", 23)
    case["state"] = torch.stack([case["state"], -case["state"]])
    segments = [slice(0, 17), slice(17, 23)]
    expected = with_gradients(case, segments=segments, form="recurrent")
    close(with_gradients(case, segments=segments, chunk=4), expected)


@pytest.mark.parametrize("kind", [kind for kind in KINDS if "scalar" in kind or "vector" in kind])
def test_a_decay_of_zero_starts_a_segment(kind: str) -> None:
    case = scan_case(kind, 23, started=False)
    segments = documents(torch.tensor([0] * 3 + [1] * 7 + [2] * 13)).segments(23)
    assert segments is not None
    for rows in segments:
        case["log_decay"][:, :, rows.start] = -torch.inf
    expected, states = linear_scan(**case, segments=segments, form="recurrent")
    for chunk in (4, 64):
        close(linear_scan(**case, chunk=chunk), (expected, states[-1]))


@pytest.mark.parametrize("form", FORMS)
@every_kind
def test_empty_sequences_and_batches(kind: str, form: str) -> None:
    case = scan_case(kind, 0)
    out, state = linear_scan(**case, form=form)
    assert out.shape == (B, H, 0, w)
    close(state, case["state"], atol=0)
    empty = {name: x if x.dim() == 1 else x[:0] for name, x in scan_case(kind, 37).items()}
    out, state = linear_scan(**empty, form=form, chunk=4)
    assert out.shape == (0, H, 37, w)
    assert state.shape == (0, H, d, w)


@every_kind
def test_nan_stays_in_its_item_and_head(kind: str) -> None:
    case = scan_case(kind, 37)
    expected, _ = linear_scan(**case, chunk=4)
    case["v"][1, 2, 20] = torch.nan
    out, _ = linear_scan(**case, chunk=4)
    assert out[1, 2, 20].isnan().all()
    out[1, 2] = expected[1, 2]
    close(out, expected, atol=0)


@pytest.mark.filterwarnings("ignore:`torch.jit.script` is deprecated")  # raised by PyTorch's own forward_ad
def test_forward_derivatives_of_several_blocks() -> None:
    x, tangent = (torch.randn(1, 1, 19, 2, dtype=torch.float64) for _ in range(2))
    with forward_ad.dual_level():
        dual = forward_ad.make_dual(x, tangent)
        out = linear_scan(dual, dual, dual, chunk=2)[0]  # more than one block of 8 chunks
        along = forward_ad.unpack_dual(out).tangent
    step = 1e-6
    near = [x + sign * step * tangent for sign in (1, -1)]
    later, earlier = (linear_scan(y, y, y, form="recurrent")[0] for y in near)
    torch.testing.assert_close(along, (later - earlier) / (2 * step), rtol=1e-6, atol=1e-6)


def test_the_outputs_of_several_blocks_are_laid_out_for_joining_heads() -> None:
    assert linear_scan(**scan_case("plain", 37), chunk=4)[0].transpose(1, 2).is_contiguous()


@pytest.mark.parametrize(("N", "name"), [(1, "recurrent"), (4, "recurrent"), (5, "parallel"), (8, "parallel")])
def test_few_steps_need_no_chunks(N: int, name: str) -> None:
    with record_dispatch() as records:
        linear_scan(**scan_case("plain", N), chunk=8)
        linear_scan(**scan_case("plain", 9), chunk=8)
        linear_scan(**scan_case("plain", 9), form="recurrent")
    assert [record.name for record in records] == [name, "chunked", "recurrent"]


# The matrix of a recurrence


@every_kind
def test_scan_map_matches_the_scan(kind: str) -> None:
    case = scan_case(kind, 83, started=False)
    v = case.pop("v")
    scan_map = ScanMap(**case)
    weights = scan_map.materialize()
    close(weights @ v, linear_scan(**case, v=v)[0])
    assert not weights.triu(1).any()
    ones = torch.ones(B, H, 83, 1, dtype=torch.float64)
    close(linear_scan(**case, v=ones, chunk=8)[0].squeeze(-1), weights.sum(-1))  # the normalizer
    close(scan_map.materialize(rows=[40, 2], heads=[1]), weights[:, [1]][:, :, [40, 2]])
    close(scan_map.pooled(10)[..., 3], weights[..., 30:40].sum(-1))
    close(torch.cat([part for _, part in scan_map.stream(19)], 2), weights)
    close(scan_map.top(3)[0], weights.topk(3, -1).values)


def test_scan_map_streams_in_bounded_memory(monkeypatch: pytest.MonkeyPatch) -> None:
    case = scan_case("delta rule", 2 * CHUNK + 5, started=False)
    del case["v"]
    widths, apply = [], ScanMap.apply
    monkeypatch.setattr(ScanMap, "apply", lambda self, v: widths.append(v.shape[-1]) or apply(self, v))
    first = next(ScanMap(**case).stream())[1]
    assert first.shape == (B, H, CHUNK, 2 * CHUNK + 5)
    assert widths == [CHUNK], "later rows are not computed, and keys are computed one chunk at a time"


def test_scan_map_refuses_dropout() -> None:
    case = scan_case("plain", 7, started=False)
    v = case.pop("v")
    with pytest.raises(ValueError, match=r"a recurrence has no attention weights to drop; dropout must be 0, not 0\.1"):
        ScanMap(**case).apply(v, dropout=0.1)
