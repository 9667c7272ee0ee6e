"""Peak memory grows with the length as the card states, for every kind of mask, in eval mode and in training."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from functools import partial

import torch
from torch import Tensor, nn

from attnlab.checks.allocations import peak
from attnlab.checks.capabilities import NotApplicable
from attnlab.checks.costs import exponent
from attnlab.checks.layer_under_test import LayerUnderTest
from attnlab.checks.probes import located
from attnlab.checks.registry import Values, check
from attnlab.masks import Mask, padding, sliding_window
from attnlab.nn.mixer import SequenceMixer

LENGTHS = (1024, 2048, 4096)
"""The last length is measured only if the growth between the first two is too large: a scratch buffer may not be full
yet."""

TOLERANCE = 0.15
"""How far the measured exponent may be above that of the card."""

WINDOW = 32

MakeMask = Callable[[int, torch.device], Mask | None]


def _no_mask(length: int, device: torch.device) -> None:
    return None


def _padding(length: int, device: torch.device) -> Mask:
    return padding(torch.tensor([length - 5], device=device))


def _window(length: int, device: torch.device) -> Mask:
    return sliding_window(WINDOW)


def _padded_window(length: int, device: torch.device) -> Mask:
    return sliding_window(WINDOW) & _padding(length, device)


CASES: dict[str, tuple[set[str], MakeMask]] = {
    "no mask": (set(), _no_mask),
    "causal": ({"causal"}, _no_mask),
    "padding": ({"padding"}, _padding),
    "causal and padding": ({"causal", "padding"}, _padding),
    "window": ({"arbitrary_mask"}, _window),
    "window and padding": ({"arbitrary_mask"}, _padded_window),
    "dropout": ({"dropout"}, _no_mask),
    "window and dropout": ({"arbitrary_mask", "dropout"}, _window),
}
"""For each case the capabilities that it needs, and the mask for a length."""


@check("memory_scaling", needs=("contract",), slow=True, limit=TOLERANCE)
def memory_scaling(case: LayerUnderTest) -> Values:
    """How far the exponent of peak memory in the length is above that of the card, in float32.

    Without a mask, causal, with padding, a window, dropout and combinations, in eval mode and in training. The events
    of the allocator are counted, so that a tensor of N² values is found on any machine; workspaces inside of a kernel
    are not included.
    """
    if case.device.type not in ("cpu", "cuda"):
        raise NotApplicable(f"allocations on {case.device.type} cannot be counted")
    for name, (needs, make_mask) in CASES.items():
        if not needs <= {*case.capabilities}:
            continue
        options = case.dropout_options if "dropout" in needs else {}
        is_causal = True if "causal" in needs else case.causal_choices[0]
        for train in (False, True):
            layer = case.build(is_causal, dtype=torch.float32, train=train, **options)
            assert isinstance(layer, SequenceMixer)
            allowed = exponent(layer.card.memory, layer, LENGTHS)
            *_, grown = growth(case, layer, make_mask, allowed)
            mode = "training" if train else "eval"
            yield grown - allowed, f"{name}, {mode}: N^{grown:.2f}, not N^{allowed:.2f}"


def growth(case: LayerUnderTest, layer: nn.Module, make_mask: MakeMask, allowed: float) -> Iterator[float]:
    """The exponent of peak memory from each length to the next, until one is within the tolerance."""
    before = None
    for length in LENGTHS:
        x, mask = case.tokens(1, length, dtype=torch.float32), make_mask(length, case.device)
        with located(f"{length} tokens, mask={mask}"):
            held = peak(partial(_run, case, layer, x, mask), case.device)
        if before is not None:
            grown = math.log2(held / before)
            yield grown
            if grown <= allowed + TOLERANCE:
                return
        before = held


def _run(case: LayerUnderTest, layer: nn.Module, x: Tensor, mask: Mask | None) -> None:
    if not layer.training:
        with torch.inference_mode():
            case(layer, x, mask)
        return
    case(layer, x.requires_grad_(), mask).sum().backward()
    x.grad = None
    layer.zero_grad()
