"""A network together with one input: what a view shows.

Axes: N length, C classes.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from torch import Tensor

from attnlab.nn.mixer import SequenceMixer

Patch = tuple[int, int, int, int]
"""The part of an image that a token holds: top, left, bottom, right, half-open, in pixels."""


@dataclass(frozen=True)
class Subject:
    """A network in eval mode with one sequence (a batch of one).

    Args:
        layers: the attention layers, in the order in which ``run`` calls them, each once.
        run: the forward pass without gradients: (N, C) for one output per token, (C,) for one per sequence. Forward
            hooks of the layers act on it.
        tokens: the label of each token, as it is; N of them.
        classes: the names of the outputs, C of them; empty if they are no classes.
        special: which tokens are [CLS], [SEP] and the like.
        notes: one line each: what a reader must know to read the page correctly.
        image: the pixels of an image, from 0 to 1.
        patches: the part of the image in each token.
    """

    layers: tuple[SequenceMixer, ...]
    run: Callable[[], Tensor]
    tokens: tuple[str, ...]
    classes: tuple[str, ...] = ()
    special: tuple[bool, ...] = ()
    notes: tuple[str, ...] = ()
    image: tuple[tuple[float, ...], ...] | None = None
    patches: tuple[Patch, ...] | None = None
