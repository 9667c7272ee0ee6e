"""Nothing is silently ignored: what is not supported raises, and one question has one answer."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import torch

from attnlab.checks.capabilities import Broken, NotClaimed
from attnlab.checks.layer import B, N, Subject, as_matrix, first_line
from attnlab.checks.probes import EXACT, difference, said, worst
from attnlab.checks.registry import Measure, promise
from attnlab.masks import documents, padding

MANY = 307
"""So many tokens that a fast path computes a part of the queries at a time."""


@promise("what is not claimed raises", needs=("contract",))
def unclaimed_raises(subject: Subject) -> Measure:
    """How many capabilities that the card does not claim are accepted in silence."""
    layer, x = subject.layer(), subject.tokens()
    square = torch.ones(N, N, device=x.device)
    asked: dict[str, Callable[[], Any]] = {
        "causal": lambda: subject.layer(causal=True),
        "padding": lambda: layer(x, mask=padding(torch.tensor([N] * B, device=x.device))),
        "segments": lambda: layer(x, mask=documents(torch.arange(N, device=x.device))),
        "arbitrary_mask": lambda: layer(x, mask=square.bool()),
        "attn_bias": lambda: layer(x, attn_bias=square.double()),
        "context": lambda: layer(x, context=x),
        "cache": lambda: layer(x, cache=object()),
        "weights": lambda: layer.attention_weights(x),  # type: ignore[operator]
    }
    accepted = [
        name
        for name, ask in asked.items()
        if name not in subject.claims and not _raises(ask, (TypeError, NotClaimed))  # UnsupportedError is a TypeError
    ]
    return Measure(len(accepted), 0, f"accepts in silence: {', '.join(accepted) or 'nothing'}")


@promise("a float mask raises and names bias=", needs=("contract", "arbitrary_mask"))
def float_mask_raises(subject: Subject) -> Measure:
    """How many masks of numbers are accepted, or refused without a word about bias=."""
    layer, x, wrong = subject.layer(), subject.tokens(), 0
    for dtype in (torch.float32, torch.float64, torch.bfloat16):
        try:
            layer(x, mask=torch.zeros(N, N, dtype=dtype, device=x.device))
            wrong += 1
        except TypeError as error:
            wrong += "bias=" not in str(error)
    return Measure(wrong, 0, "float masks accepted, or refused without naming bias=")


@promise("what does not fit raises", needs=("contract",))
def misfits_raise(subject: Subject) -> Measure:
    """How many shapes that do not fit are accepted, or raise another thing than a ValueError."""
    layer, x = subject.layer(), subject.tokens()
    asked: dict[str, Callable[[], Any]] = {
        "x of another width": lambda: layer(torch.cat([x, x], -1)),
        "x without a batch": lambda: layer(x[0]),
    }
    if "arbitrary_mask" in subject.claims:
        for shape in ((N, N + 1), (N + 1, N), (B + 1, N, N), (B, subject.num_heads + 1, N, N)):
            mask = torch.ones(shape, dtype=torch.bool, device=x.device)
            asked[f"a mask of shape {shape}"] = lambda mask=mask: layer(x, mask=mask)  # type: ignore[misc]
    if "context" in subject.claims:
        asked["a context of another batch"] = lambda: layer(x, context=subject.tokens(batch=B + 1))
        asked["a context of another width"] = lambda: layer(x, context=torch.cat([x, x], -1))
    accepted = [name for name, ask in asked.items() if not _raises(ask, (ValueError,))]
    return Measure(len(accepted), 0, f"accepts {', '.join(accepted) or 'nothing'}")


@promise("a mask is its Boolean tensor", needs=("contract", "arbitrary_mask"))
def one_answer(subject: Subject) -> Measure:
    """The difference between a mask and the same as a Boolean tensor of two, three and four axes."""

    def measured() -> Iterator[tuple[float, str]]:
        for causality in subject.causal_choices:
            layer = subject.build(causality)
            for mask in subject.masks():
                x = subject.tokens()
                expected, matrix = layer(x, mask=mask), as_matrix(mask, x, x)
                heads = matrix.unsqueeze(1).expand(-1, subject.num_heads, -1, -1)
                for tensor in (matrix, heads):
                    yield difference(layer(x, mask=tensor), expected), f"{mask} differs from its tensor"
                if bool((matrix == matrix[0]).all()):
                    yield difference(layer(x, mask=matrix[0]), expected), f"{mask} differs from its tensor"

    return worst(measured(), EXACT)


@promise("causal with a context of another length raises", needs=("contract", "causal", "context"))
def causal_context_raises(subject: Subject) -> Measure:
    """How many contexts of another length a causal layer accepts: the positions of two sequences do not compare."""
    layer, x = subject.layer(causal=True), subject.tokens()
    lengths = (1, N - 2, N + 1, 2 * N)
    accepted = [
        length
        for length in lengths
        if not _raises(lambda length=length: layer(x, context=subject.tokens(length=length, seed=1)), (ValueError,))  # type: ignore[misc]
    ]
    return Measure(len(accepted), 0, f"{N} causal tokens accept contexts of length {accepted}")


@promise("a bias broadcasts", needs=("contract", "attn_bias"))
def bias_broadcasts(subject: Subject) -> Measure:
    """The difference between a bias of any shape that broadcasts to (B, H, N, M) and the same bias expanded.

    Also between one in float32 and in float64; 1 for a bias that is Boolean or an integer and does not raise.
    """
    heads = subject.num_heads

    def shapes(n: int) -> list[tuple[int, ...]]:
        few: list[tuple[int, ...]] = [(), (n,), (n, 1), (heads, 1, 1)]
        return few if n > N else [*few, (n, n), (heads, n, n), (1, heads, 1, n), (B, 1, n, 1), (B, 1, 1, n)]

    def measured() -> Iterator[tuple[float, str]]:
        for causality in subject.causal_choices:
            layer = subject.build(causality)
            for length in (N, MANY):
                x = subject.tokens(length=length)
                for mask in (None, *subject.masks(length=length, causality=causality)[:1]):
                    for shape in shapes(length):
                        bias = subject.random(*shape, seed=2)
                        how = f"a bias of shape {shape} for {length} tokens ({said(causality, mask)})"
                        try:
                            found = subject(layer, x, mask, attn_bias=bias)
                        except Exception as error:
                            raise Broken(f"{first_line(error)} ({how})") from error
                        whole = bias.expand(B, heads, length, length).contiguous()
                        yield difference(found, subject(layer, x, mask, attn_bias=whole)), how
            x = subject.tokens()
            for mask in (None, *subject.masks(causality=causality)[:1]):
                whole = subject.random(B, heads, N, N, seed=2).float()
                found, expected = (subject(layer, x, mask, attn_bias=bias) for bias in (whole, whole.double()))
                yield difference(found, expected), f"a bias in float32 ({said(causality, mask)})"
            for dtype in (torch.bool, torch.int64):
                wrong = torch.ones(N, N, dtype=dtype, device=x.device)
                accepted = not _raises(lambda: layer(x, attn_bias=wrong), (TypeError,))  # noqa: B023
                yield float(accepted), f"a bias of {dtype} is accepted"

    return worst(measured(), subject.exact)


@promise("an integer mask raises or is read as Boolean", needs=("arbitrary_mask",))
def integer_mask(subject: Subject) -> Measure:
    """The difference that the integer dtype of a mask of zeros and ones makes, where it does not raise."""

    def measured() -> Iterator[tuple[float, str]]:
        x = subject.tokens()
        for causality in subject.causal_choices:
            layer = subject.build(causality)
            for mask in subject.masks(causality=causality):
                matrix = as_matrix(mask, x, x)
                for dtype in (torch.uint8, torch.int8, torch.int32, torch.int64):
                    try:
                        found = subject(layer, x, matrix.to(dtype))
                    except Exception:  # refused
                        continue
                    yield difference(found, subject(layer, x, matrix)), f"a mask of {dtype} ({said(causality, mask)})"

    return worst(measured(), subject.exact)


def _raises(ask: Callable[[], Any], kinds: tuple[type[Exception], ...]) -> bool:
    try:
        ask()
    except kinds:
        return True
    return False
