"""What the tests of the page share: small setups, and where things are on the page."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch

from attnlab.explore.explorer import Explorer
from attnlab.explore.link import fragment
from attnlab.explore.setup import (
    Lesson,
    MapRequest,
    ScoreChange,
    Setup,
    Text,
    ThreeTokens,
    Untrained,
)

playwright = pytest.importorskip("playwright.sync_api", reason="install the extra dev")
expect = playwright.expect
expect.set_options(timeout=20_000)  # on a busy machine

Visit = Callable[..., Any]

TEXT = "abcdeabcdea"


def small(model: str = "multihead") -> Setup:
    """An untrained network of two layers with three heads."""
    return Setup(source=Untrained(model=model, embed_dim=12, options={"num_heads": 3}), input=Text(text=TEXT))


SMALL = small()


def warm(temperature: float) -> Setup:
    """The small network at another temperature."""
    return SMALL.model_copy(update={"scores": ScoreChange(temperature=temperature)})


LESSON = Setup(source=Lesson(), input=ThreeTokens())


def head_of(explorer: Explorer, setup: Setup, layer: int = 0, head: int = 0) -> torch.Tensor:
    return explorer.matrix(MapRequest(setup=setup, layer=layer, head=head))


def strongest(explorer: Explorer, setup: Setup) -> tuple[int, int]:
    """The layer and the head with the largest score of induction."""
    layers = explorer.view(setup).layers
    scores = {(i, j): head.tags["induction"] for i, layer in enumerate(layers) for j, head in enumerate(layer.heads)}
    return max(scores, key=lambda at: scores[at])


def link(setup: Setup, **place: str) -> str:
    return fragment(setup, **place)


def readout(page: Any) -> Any:
    return expect(page.locator("#readout"))


def digits(value: float | torch.Tensor) -> str:
    """A number as the page writes it."""
    return f"{float(value):#.3g}".replace("-", "−")


def shown_weight(page: Any) -> float:
    """The weight in the line above the matrix."""
    return float(page.inner_text("#readout").rpartition(" ")[2].replace("−", "-"))


def geometry(page: Any, length: int = len(TEXT)) -> tuple[float, float, float]:
    """The corner of the first cell and the size of a cell, in pixels of the window, found by moving the mouse.

    The line above the matrix names a cell only while the mouse is over one.
    """
    stage = page.locator(".stage").first
    stage.scroll_into_view_if_needed()
    box = stage.bounding_box()
    middle = box["x"] + box["width"] / 2, box["y"] + box["height"] / 2
    corner = []
    for axis in (0, 1):
        low, high = box["xy"[axis]], middle[axis]
        while high - low > 0.5:
            at = (low + high) / 2
            page.mouse.move(*((at, middle[1]) if axis == 0 else (middle[0], at)))
            inside = stage.evaluate("(stage) => 'hovered' in stage.dataset")
            low, high = (low, at) if inside else (at, high)
        corner.append(high)
    return corner[0], corner[1], (box["x"] + box["width"] - 2 - corner[0]) / length


def point(page: Any, cell: tuple[int, int]) -> tuple[float, float]:
    """The middle of a cell of the matrix."""
    left, top, unit = geometry(page)
    return left + (cell[1] + 0.5) * unit, top + (cell[0] + 0.5) * unit
