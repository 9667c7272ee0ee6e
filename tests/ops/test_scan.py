"""The forms of the scan against the formula and each other, in float64; sizes are distinct primes."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from scans import FORMS, KINDS, B, Case, H, by_hand, d, part, scan_case, w
from torch import Tensor

from attnlab.masks import documents
from attnlab.ops import scan
from attnlab.ops.dispatch import record_dispatch
from attnlab.ops.scan import linear_scan

LENGTHS = (1, 2, 5, 37)
CHUNKS = (1, 4, 7, 64)


@pytest.fixture(autouse=True)
def _short_blocks(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(scan.blocks, "BLOCK", {"cpu": 16})


def gradients(case: Case, **options: Any) -> tuple[Tensor, ...]:
    """The gradients of every input, through the outputs and the last state."""
    case = {name: x.clone().requires_grad_() for name, x in case.items()}
    out, state = linear_scan(**case, **options)
    return torch.autograd.grad(out.square().sum() + state.sin().sum(), tuple(case.values()))


def close(actual: Any, expected: Any, atol: float = 1e-10) -> None:
    torch.testing.assert_close(actual, expected, rtol=0, atol=atol)


@pytest.mark.parametrize("kind", KINDS)
def test_the_recurrent_form_is_the_formula(kind: str) -> None:
    case = scan_case(kind, 11)
    close(linear_scan(**case, form="recurrent"), by_hand(case))


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("N", LENGTHS)
def test_the_forms_agree_on_outputs_and_state(kind: str, N: int) -> None:
    case = scan_case(kind, N)
    expected = linear_scan(**case, form="recurrent")
    for form in FORMS:
        for chunk in CHUNKS:
            close(linear_scan(**case, form=form, chunk=chunk), expected)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("form", ["chunked", "parallel"])
@pytest.mark.parametrize("chunk", [4, 7, 64])
def test_the_forms_agree_on_gradients(kind: str, form: str, chunk: int) -> None:
    case = scan_case(kind, 37)
    close(gradients(case, form=form, chunk=chunk), gradients(case, form="recurrent"))


@pytest.mark.parametrize("kind", KINDS)
def test_without_a_state_it_starts_at_zero(kind: str) -> None:
    case = scan_case(kind, 37)
    started = linear_scan(**{**case, "state": torch.zeros_like(case["state"])}, chunk=4)
    del case["state"]
    close(linear_scan(**case, chunk=4), started, atol=0)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("form", FORMS)
def test_float32_stays_near_float64(kind: str, form: str) -> None:
    expected = linear_scan(**scan_case(kind, 37), form="recurrent")
    out, state = linear_scan(**scan_case(kind, 37, torch.float32), form=form, chunk=8)
    assert out.dtype == state.dtype == torch.float32
    close((out.double(), state.double()), expected, atol=3e-5)


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
        alone = linear_scan(**part(case, rows, None if states is None else states[i]), form="recurrent")
        close((out[:, :, rows], last[i]), alone)


def test_gradients_of_segments() -> None:
    case = scan_case("delta rule, vector decay", 23)
    case["state"] = torch.stack([case["state"], -case["state"]])
    segments = [slice(0, 17), slice(17, 23)]
    close(gradients(case, segments=segments, chunk=4), gradients(case, segments=segments, form="recurrent"))


@pytest.mark.parametrize("kind", [kind for kind in KINDS if "scalar" in kind or "vector" in kind])
def test_a_decay_of_zero_starts_a_segment(kind: str) -> None:
    case = scan_case(kind, 23)
    del case["state"]
    segments = documents(torch.tensor([0] * 3 + [1] * 7 + [2] * 13)).segments(23)
    assert segments is not None
    for rows in segments:
        case["log_decay"][:, :, rows.start] = -torch.inf
    for chunk in (4, 64):
        out, state = linear_scan(**case, chunk=chunk)
        expected, states = linear_scan(**case, segments=segments, form="recurrent")
        close((out, state), (expected, states[-1]))


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("kind", KINDS)
def test_empty_sequences_and_batches(kind: str, form: str) -> None:
    case = scan_case(kind, 0)
    out, state = linear_scan(**case, form=form)
    assert out.shape == (B, H, 0, w)
    close(state, case["state"], atol=0)
    empty = {name: x if x.dim() == 1 else x[:0] for name, x in scan_case(kind, 37).items()}
    out, state = linear_scan(**empty, form=form, chunk=4)
    assert out.shape == (0, H, 37, w)
    assert state.shape == (0, H, d, w)


@pytest.mark.parametrize("kind", KINDS)
def test_identity_values_give_the_matrix(kind: str) -> None:
    case = scan_case(kind, 37)
    del case["state"]
    out, _ = linear_scan(**case, chunk=8)
    matrix, _ = linear_scan(**{**case, "v": torch.eye(37, dtype=torch.float64).expand(B, H, 37, 37)}, chunk=8)
    close(matrix @ case["v"], out)
    assert not matrix.triu(1).any()


@pytest.mark.parametrize("kind", ["plain", "constant decay", "scalar decay"])
def test_a_column_of_ones_gives_the_normalizer(kind: str) -> None:
    case = scan_case(kind, 37)
    del case["state"]
    matrix, _ = linear_scan(**{**case, "v": torch.eye(37, dtype=torch.float64).expand(B, H, 37, 37)})
    ones = torch.ones(B, H, 37, 1, dtype=torch.float64)
    out, _ = linear_scan(**{**case, "v": torch.cat([case["v"], ones], -1)}, chunk=8)
    close(out[..., -1], matrix.sum(-1))


@pytest.mark.parametrize("kind", KINDS)
def test_nan_stays_in_its_item_and_head(kind: str) -> None:
    case = scan_case(kind, 37)
    expected, _ = linear_scan(**case, chunk=4)
    case["v"][1, 2, 20] = torch.nan
    out, _ = linear_scan(**case, chunk=4)
    assert out[1, 2, 20].isnan().all()
    out[1, 2] = expected[1, 2]
    close(out, expected, atol=0)


def test_the_outputs_of_several_blocks_are_laid_out_for_joining_heads() -> None:
    case = scan_case("plain", 37)
    assert linear_scan(**case, chunk=4)[0].transpose(1, 2).is_contiguous()


@pytest.mark.parametrize(("N", "name"), [(1, "recurrent"), (4, "recurrent"), (5, "parallel"), (8, "parallel")])
def test_few_steps_need_no_chunks(N: int, name: str) -> None:
    with record_dispatch() as records:
        linear_scan(**scan_case("plain", N), chunk=8)
        linear_scan(**scan_case("plain", 9), chunk=8)
        linear_scan(**scan_case("plain", 9), form="recurrent")
    assert [record.name for record in records] == [name, "chunked", "recurrent"]
