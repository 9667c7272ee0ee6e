"""Memory grows with the length as the card says, whatever the mask, in eval and in training."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator

import torch
from torch import Tensor, nn

from attnlab.checks.allocations import peak
from attnlab.checks.capabilities import Broken, NotClaimed
from attnlab.checks.costs import exponent
from attnlab.checks.layer import Subject, first_line
from attnlab.checks.probes import worst
from attnlab.checks.registry import Measure, promise
from attnlab.masks import Mask, padding, sliding_window
from attnlab.nn.attention import SequenceMixer

LENGTHS = (1024, 2048, 4096)
"""The last one only where the growth between the first two is too large: a scratch buffer may not be full yet."""

ABOVE = 0.15
"""How far the measured exponent may lie above the card's."""

WINDOW = 32

CASES: dict[str, tuple[set[str], Callable[[int, torch.device], Mask | None]]] = {
    "plain": (set(), lambda length, device: None),
    "causal": ({"causal"}, lambda length, device: None),
    "padding": ({"padding"}, lambda length, device: _padded(length, device)),
    "causal and padding": ({"causal", "padding"}, lambda length, device: _padded(length, device)),
    "window": ({"arbitrary_mask"}, lambda length, device: sliding_window(WINDOW)),
    "window and padding": ({"arbitrary_mask"}, lambda length, device: sliding_window(WINDOW) & _padded(length, device)),
    "dropout": ({"dropout"}, lambda length, device: None),
    "window and dropout": ({"arbitrary_mask", "dropout"}, lambda length, device: sliding_window(WINDOW)),
}
"""What a layer must claim for each case, and the mask for a length."""


@promise("memory grows as the card says", needs=("contract",), slow=True)
def memory_growth(subject: Subject) -> Measure:
    """The exponent of peak memory in the length, beyond the card's, in eval and in training, in float32.

    Plain, causal, with padding, a window, dropout and combinations; the allocator's events are counted, so that a
    tensor of N² entries is found whatever the machine; workspaces inside of a kernel are not seen.
    """
    if subject.device.type not in ("cpu", "cuda"):
        raise NotClaimed(f"allocations on {subject.device.type} cannot be counted")

    def measured() -> Iterator[tuple[float, str]]:
        for case, (needs, make_mask) in CASES.items():
            if not needs <= {*subject.claims}:
                continue
            options = {"dropout": subject.dropout} if "dropout" in needs and subject.can_choose("dropout") else {}
            causality = True if "causal" in needs else subject.causal_choices[0]
            for train in (False, True):
                layer = subject.build(causality, dtype=torch.float32, train=train, **options)
                assert isinstance(layer, SequenceMixer)
                allowed = exponent(layer.card.memory, layer, LENGTHS)
                *_, grown = growth(subject, layer, make_mask, allowed)
                yield grown - allowed, f"{case}, {'training' if train else 'eval'}: N^{grown:.2f}, not N^{allowed:.2f}"

    return worst(measured(), ABOVE)


def growth(
    subject: Subject, layer: nn.Module, make_mask: Callable[[int, torch.device], Mask | None], allowed: float
) -> Iterator[float]:
    """The exponent of peak memory from each length to the next, until one is not above what is allowed."""
    before = None
    for length in LENGTHS:
        x = subject.tokens(1, length, dtype=torch.float32)
        mask = make_mask(length, subject.device)
        try:
            held = peak(lambda: _run(subject, layer, x, mask), subject.device)  # noqa: B023
        except Exception as error:
            raise Broken(f"{first_line(error)} ({length} tokens, mask={mask})") from error
        if before is not None:
            grown = math.log2(held / before)
            yield grown
            if grown <= allowed + ABOVE:
                return
        before = held


def _run(subject: Subject, layer: nn.Module, x: Tensor, mask: Mask | None) -> None:
    if not layer.training:
        with torch.inference_mode():
            subject(layer, x, mask)
        return
    subject(layer, x.requires_grad_(), mask).sum().backward()
    x.grad = None
    layer.zero_grad()


def _padded(length: int, device: torch.device) -> Mask:
    return padding(torch.tensor([length - 5], device=device))
