"""Peak memory grows with the length as the card states, for every kind of mask, in eval mode and in training."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator

import torch
from torch import Tensor, nn

from attnlab.checks.allocations import peak
from attnlab.checks.capabilities import NotApplicable
from attnlab.checks.costs import exponent
from attnlab.checks.layer_under_test import LayerUnderTest
from attnlab.checks.probes import calling, largest
from attnlab.checks.registry import Measurement, check
from attnlab.masks import Mask, padding, sliding_window
from attnlab.nn.mixer import SequenceMixer

LENGTHS = (1024, 2048, 4096)
"""The last length is measured only if the growth between the first two is too large: a scratch buffer may not be full
yet."""

TOLERANCE = 0.15
"""How far the measured exponent may be above that of the card."""

WINDOW = 32

MakeMask = Callable[[int, torch.device], Mask | None]

CASES: dict[str, tuple[set[str], MakeMask]] = {
    "no mask": (set(), lambda length, device: None),
    "causal": ({"causal"}, lambda length, device: None),
    "padding": ({"padding"}, lambda length, device: _padding(length, device)),
    "causal and padding": ({"causal", "padding"}, lambda length, device: _padding(length, device)),
    "window": ({"arbitrary_mask"}, lambda length, device: sliding_window(WINDOW)),
    "window and padding": (
        {"arbitrary_mask"},
        lambda length, device: sliding_window(WINDOW) & _padding(length, device),
    ),
    "dropout": ({"dropout"}, lambda length, device: None),
    "window and dropout": ({"arbitrary_mask", "dropout"}, lambda length, device: sliding_window(WINDOW)),
}
"""For each case the capabilities that it needs, and the mask for a length."""


@check("memory_scaling", needs=("contract",), slow=True)
def memory_scaling(case: LayerUnderTest) -> Measurement:
    """How far the exponent of peak memory in the length is above that of the card, in float32.

    Without a mask, causal, with padding, a window, dropout and combinations, in eval mode and in training. The events
    of the allocator are counted, so that a tensor of N² values is found on any machine; workspaces inside of a kernel
    are not included.
    """
    if case.device.type not in ("cpu", "cuda"):
        raise NotApplicable(f"allocations on {case.device.type} cannot be counted")

    def measure() -> Iterator[tuple[float, str]]:
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

    return largest(measure(), TOLERANCE)


def growth(case: LayerUnderTest, layer: nn.Module, make_mask: MakeMask, allowed: float) -> Iterator[float]:
    """The exponent of peak memory from each length to the next, until one is within the tolerance."""
    before = None
    for length in LENGTHS:
        x, mask = case.tokens(1, length, dtype=torch.float32), make_mask(length, case.device)
        held = calling(
            lambda: peak(lambda: _run(case, layer, x, mask), case.device),  # noqa: B023
            f"{length} tokens, mask={mask}",
        )
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


def _padding(length: int, device: torch.device) -> Mask:
    return padding(torch.tensor([length - 5], device=device))
