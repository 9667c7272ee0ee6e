"""The short convolution against a loop over the tokens of each document, at once and in several calls."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from packed_rows import Rows, rows
from torch import Tensor
from torch.fx.experimental.proxy_tensor import make_fx

from attnlab.nn.convolution import ShortConvolution
from attnlab.ops.scan import Sequences

C = 3


def made(size: int, bias: bool) -> ShortConvolution:
    torch.manual_seed(0)
    return ShortConvolution(C, size, bias=bias, dtype=torch.float64)


def tokens(drawn: Rows) -> Tensor:
    generator = torch.Generator().manual_seed(drawn.length)
    return torch.randn(drawn.batch, drawn.length, C, dtype=torch.float64, generator=generator)


def by_loop(conv: ShortConvolution, x: Tensor, drawn: Rows) -> Tensor:
    """The sums at real tokens, zero elsewhere."""
    out = torch.zeros_like(x)
    for row in range(drawn.batch):
        for t in range(drawn.length):
            if drawn.is_real(row, t):
                document = drawn.document(row, t)[::-1]
                out[row, t] = sum(conv.weight[:, j] * x[row, document[j]] for j in range(min(conv.size, len(document))))
                out[row, t] += 0 if conv.bias is None else conv.bias
    return out


@torch.no_grad()
@given(rows(), st.integers(1, 5), st.booleans())
def test_each_document_is_convolved_alone(drawn: Rows, size: int, bias: bool) -> None:
    conv, x, N = made(size, bias), tokens(drawn), drawn.length
    sequences = Sequences(drawn.mask(N, N), N)
    out = sequences.restore(conv(sequences.arrange(x), sequences)[0])
    torch.testing.assert_close(sequences.zero_padding(out), by_loop(conv, x, drawn), rtol=0, atol=1e-12)


@torch.no_grad()
@given(rows(contiguous=True), st.integers(1, 5), st.permutations((0, 1, 1, 2, 3, 4)))
def test_calls_continue_each_other(drawn: Rows, size: int, lengths: list[int]) -> None:
    conv, x, N = made(size, True), tokens(drawn), drawn.length
    kept, outs, start = None, [], 0
    for length in lengths:
        new = min(length, N - start)
        sequences = Sequences(drawn.mask(new, start + new), new, cached=True)
        out, kept = conv(sequences.arrange(x[:, start : start + new]), sequences, kept)
        assert kept.shape == (drawn.batch, size - 1, C)
        outs.append(sequences.zero_padding(sequences.restore(out)))
        start += new
    torch.testing.assert_close(torch.cat(outs, 1), by_loop(conv, x, drawn)[:, :start], rtol=0, atol=1e-12)


def test_without_a_mask_it_is_the_convolution_of_pytorch() -> None:
    conv = made(4, True)
    theirs = torch.nn.Conv1d(C, C, 4, groups=C, padding=3, dtype=torch.float64)
    with torch.no_grad():
        theirs.weight.copy_(conv.weight.flip(1).unsqueeze(1))
        theirs.bias.copy_(conv.bias)  # type: ignore[union-attr, arg-type]
    x = torch.randn(2, 7, C, dtype=torch.float64, requires_grad=True)
    ours, expected = conv(x, Sequences(None, 7))[0], theirs(x.mT)[..., :7].mT
    torch.testing.assert_close(ours, expected, rtol=0, atol=1e-12)
    gradients = [torch.autograd.grad(out.square().sum(), x)[0] for out in (ours, expected)]
    torch.testing.assert_close(*gradients, rtol=0, atol=1e-12)


@pytest.mark.filterwarnings("ignore")  # of make_fx itself
def test_a_graph_of_it_can_be_traced_with_gradients() -> None:
    conv, x = made(4, True), torch.randn(2, 7, C, dtype=torch.float64)
    graph = make_fx(lambda x: conv(x, Sequences(None, 7))[0])(x)
    torch.testing.assert_close(graph(x), conv(x, Sequences(None, 7))[0])


def test_selection_and_initial_values() -> None:
    conv, x = made(3, True), torch.randn(1, 5, C, dtype=torch.float64)
    whole = conv(x, Sequences(None, 5))[0]
    conv.select([2, 0])
    assert torch.equal(conv(x[..., [2, 0]], Sequences(None, 5))[0], whole[..., [2, 0]])
    wide = ShortConvolution(1000, 4, bias=True)
    for parameter in wide.parameters():
        assert 0.49 < parameter.abs().max() <= 0.5
        assert parameter.mean().abs() < 0.05
    assert "channels=1000, size=4" in repr(wide)


@pytest.mark.parametrize(("size", "error"), [(0, ValueError), (2.5, TypeError), (True, TypeError)])
def test_a_size_that_is_no_positive_integer_is_refused(size: int, error: type[Exception]) -> None:
    with pytest.raises(error, match="short_conv"):
        ShortConvolution(C, size)
