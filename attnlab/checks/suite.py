"""Hold a layer to its promises."""

from __future__ import annotations

from collections.abc import Callable, Collection

import torch
from torch import Tensor, nn

from attnlab.checks.capabilities import CLAIMS, Broken, NotClaimed
from attnlab.checks.layer import SEED, Call, Subject, first_line
from attnlab.checks.registry import Promise, every_promise
from attnlab.checks.report import Report, Row
from attnlab.utils.errors import UserError, nearest


def check_attention(
    target: nn.Module | Callable[..., nn.Module],
    *,
    embed_dim: int | None = None,
    call: Call | None = None,
    weights: Call | None = None,
    reference: Callable[..., Tensor] | None = None,
    claims: Collection[str] | None = None,
    device: torch.device | str = "cpu",
    fast: bool = False,
    only: Collection[str] = (),
    skip: Collection[str] = (),
    raises: bool = True,
    progress: Callable[[str], None] | None = None,
) -> Report:
    """Hold an attention layer to every promise that it claims.

    It may be any module that takes (B, N, D) and gives the same shape. For an `attnlab.Attention` the card says what
    it claims; for another its signatures do: a ``causal`` in the constructor, a ``mask`` in ``forward``, a method
    ``weights`` (B, H, N, N). What such a layer gets as mask is Boolean (B, N, N), True means *may look*.

    Args:
        target: a class or function that makes a fresh layer, or a layer, of which copies are checked. A class can be
            built causal, and with dropout; a layer is checked as it was made.
        embed_dim: D; read off the constructor or the layer where not given.
        call: ``(layer, x, mask) -> out`` for a layer that is asked in another way.
        weights: ``(layer, x, mask) -> (B, H, N, N)`` for one whose weights are.
        reference: ``(layer, x, mask=, bias=, context=) -> out``, the layer's formula in plain lines, to which it is
            compared; the mask is Boolean (B, H, N, M). ``reference.py`` beside the class is found without.
        claims: what it claims instead (see `attnlab.checks.registry.CLAIMS`).
        device: where to run.
        fast: leave out the slow promises, which compile, or measure the peak memory of long sequences.
        only: the names of the promises to check; all without it.
        skip: the names of promises to leave out.
        raises: raise when a promise is broken; without it, look at the report.
        progress: called with the name of each promise before it is checked.

    Returns:
        A `Report`, a row a promise: kept, broken, or not claimed, and the number measured.

    Raises:
        AssertionError: promises are broken; the message lists them, each with its number and where it was measured.
        UnknownNameError: a claim that does not exist.
        UserError: a target that is no layer and makes none, or one that cannot be built, asked with tokens alone,
            moved to the device, or whose width is not known; an unknown promise.
    """
    __tracebackhide__ = True  # in pytest the message says it all
    known = every_promise()
    for name in (*only, *skip):
        if name not in known:
            near = nearest(name, known)
            hint = f"did you mean {near}?" if near else "attnlab check shows them all"
            raise UserError(f"unknown promise {name!r}; {hint}")
    chosen = [
        promise
        for name, promise in known.items()
        if (not only or name in only) and name not in skip and not (fast and promise.slow)
    ]
    rows = []
    # Whoever calls this finds torch's generators as they were.
    with torch.random.fork_rng(range(torch.cuda.device_count())), torch.enable_grad():
        subject = Subject(
            target,
            embed_dim=embed_dim,
            call=call,
            weights=weights,
            reference=reference,
            claims=claims,
            device=device,
        )
        for promise in chosen:
            if progress:
                progress(promise.name)
            rows.append(check(promise, subject))
    report = Report(subject.name, tuple(rows), left_out=len(known) - len(rows))
    if raises:
        report.raise_for_failures()
    return report


def check(promise: Promise, subject: Subject) -> Row:
    """Hold a layer to one promise. Whatever the layer raises is a failure of it, never of the suite."""
    for claim in promise.needs:
        if claim not in subject.claims:
            return Row(promise.name, "not claimed", detail=CLAIMS[claim])
    try:
        torch.manual_seed(SEED)
        measure = promise.measure(subject)
    except NotClaimed as reason:
        return Row(promise.name, "not claimed", detail=str(reason))
    except Broken as error:
        return Row(promise.name, "fail", detail=str(error))
    except Exception as error:
        return Row(promise.name, "fail", detail=first_line(error))
    return Row(
        promise.name, "pass" if measure.kept else "fail", float(measure.value), float(measure.limit), measure.detail
    )
