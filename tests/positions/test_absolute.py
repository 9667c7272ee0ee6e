"""Absolute positions: sinusoids and a learned table, counted from the first real token."""

from __future__ import annotations

import math
from collections.abc import Callable

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from attnlab.masks import padding
from attnlab.models.multihead import MultiAttention
from attnlab.positions import AbsoluteEmbedding, Learned, Sinusoidal, make_absolute

B, N, L = 3, 7, 23
META = torch.zeros(B, dtype=torch.long, device="meta")


def tokens(length: int = N, width: int = 10) -> Tensor:
    return torch.randn(B, length, width, dtype=torch.float64, generator=torch.Generator().manual_seed(0))


def made(name: str, width: int = 10) -> AbsoluteEmbedding:
    torch.manual_seed(0)
    return make_absolute(name, length=L, embed_dim=width).double()


@pytest.mark.parametrize("width", [1, 2, 10, 11])
def test_sinusoids_match_the_paper(width: int) -> None:
    added = Sinusoidal(width)(torch.zeros(B, N, width, dtype=torch.float64), first=5)
    for m in range(N):
        for c in range(width):
            angle = (m + 5) / 10_000 ** (2 * (c // 2) / width)
            expected = math.cos(angle) if c % 2 else math.sin(angle)
            assert added[2, m, c].item() == pytest.approx(expected, abs=1e-12), (m, c)


def test_sinusoids_are_unlimited_and_exact() -> None:
    far = Sinusoidal(16)(torch.zeros(1, 1, 16), first=99_999)
    exact = Sinusoidal(16)(torch.zeros(1, 1, 16, dtype=torch.float64), first=99_999)
    assert far.dtype == torch.float32
    torch.testing.assert_close(far.double(), exact, rtol=0, atol=1e-6)
    assert Sinusoidal(16).limit is None


def test_learned_positions_add_and_train_their_rows() -> None:
    learned, x = made("learned"), tokens()
    assert isinstance(learned, Learned)
    out = learned(x, first=4)
    assert torch.equal(out, x + learned.table[4:11])
    out.square().sum().backward()
    assert learned.table.grad is not None
    assert learned.table.grad.any(-1).nonzero().flatten().tolist() == list(range(4, 11))


def test_none_adds_nothing() -> None:
    assert torch.equal(made("none")(tokens(), first=3), tokens())


@pytest.mark.parametrize("name", ["learned", "sinusoidal"])
@given(starts=st.none() | st.lists(st.integers(0, 40), min_size=B, max_size=B), first=st.integers(0, 30))
def test_positions_count_from_the_first_real_token(name: str, starts: list[int] | None, first: int) -> None:
    """The first token of the cache without ``starts``."""
    positions, x = made(name), tokens()
    each = [0] * B if starts is None else starts
    if name == "learned" and first + N - min(each) > L:
        return
    out = positions(x, first=first, starts=None if starts is None else torch.tensor(starts))
    for b, start in enumerate(each):
        for i in range(max(start - first, 0), N):
            assert torch.equal(out[b, i], positions(x[b : b + 1, i : i + 1], first=first + i - start)[0, 0])


@pytest.mark.parametrize("name", ["learned", "sinusoidal"])
@pytest.mark.parametrize("scheme", ["none", "rotary", "alibi"])
def test_left_padding_does_not_shift_positions_in_a_layer(name: str, scheme: str) -> None:
    positions, x, lengths = made(name, 12), tokens(L, 12), torch.tensor([23, 11, 2])
    layer = MultiAttention(12, 3, positions=scheme, causal=True).double()
    mask = padding(lengths, side="left", max_length=L)
    together = layer(positions(x, starts=L - lengths), mask=mask)
    for b, n in enumerate(lengths.tolist()):
        alone = layer(positions(x[b : b + 1, L - n :]))
        torch.testing.assert_close(together[b : b + 1, L - n :], alone)


def test_padding_may_exceed_the_table() -> None:
    learned, x = made("learned"), tokens(L + 5)
    starts = torch.tensor([5, 6, L + 4])
    assert torch.equal(learned(x, starts=starts)[0, 5:], learned(x[:, 5:])[0])
    with pytest.raises(ValueError, match="the sequence has 24 tokens, but there are only 23 learned positions"):
        learned(x, starts=torch.tensor([5, 4, 6]))


@pytest.mark.slow
@pytest.mark.parametrize("name", ["learned", "sinusoidal", "none"])
def test_export_and_half_precision(name: str) -> None:
    positions = make_absolute(name, length=L, embed_dim=10)
    shape = {1: torch.export.Dim("length", max=L)}
    program = torch.export.export(positions, (tokens().float(),), dynamic_shapes={"x": shape})
    other = tokens(11).float()
    torch.testing.assert_close(program.module()(other), positions(other))
    assert positions.half()(other.half()).dtype == torch.float16


@pytest.mark.parametrize(
    ("call", "error", "message"),
    [
        (lambda: made("learned")(tokens(24)), ValueError, "has 24 tokens, but there are only 23 learned positions"),
        (lambda: made("learned")(tokens(1), first=23), ValueError, "has 24 tokens"),
        (lambda: made("sinusoidal")(tokens(N, 12)), ValueError, r"\(batch, length, 10\), not \(3, 7, 12\)"),
        (lambda: made("none")(tokens()[0]), ValueError, r"not \(7, 10\)"),
        (lambda: made("sinusoidal")(tokens(), first=-1), ValueError, "first must be at least 0, not -1"),
        (lambda: made("learned")(tokens(), starts=torch.zeros(B)), TypeError, "must be integers, not torch.float32"),
        (lambda: made("learned")(tokens(), starts=torch.zeros(B).bool()), TypeError, "not torch.bool"),
        (lambda: made("none")(tokens(), starts=torch.zeros(2).long()), ValueError, r"= \(3,\), not \(2"),
        (lambda: made("none")(tokens(), starts=torch.tensor([0, -2, 1])), ValueError, "must be at least 0, not -2"),
        (lambda: made("none")(tokens(), starts=META), ValueError, "starts is on meta, x on cpu"),
        (lambda: Learned(0, 10), ValueError, "length must be at least 1, not 0"),
        (lambda: made("sinusoid"), ValueError, "learned, sinusoidal or none, not 'sinusoid'; did you mean sinusoidal?"),
    ],
)
def test_invalid_arguments_are_refused(call: Callable[[], object], error: type[Exception], message: str) -> None:
    with pytest.raises(error, match=message):
        call()
