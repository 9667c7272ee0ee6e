"""The card of a mechanism: its source, its costs and its capabilities."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Literal, get_args

from attnlab.utils.errors import nearest

Kind = Literal["exact", "approximation", "another operator"]
"""How the output relates to softmax attention: equal to it, an approximation of it, or a different function."""

WeightKind = Literal["probabilities", "non-negative", "signed"]
"""The weights of a query: non-negative with sum 1, non-negative, or of either sign."""

WEIGHTS: dict[WeightKind, str] = {
    "probabilities": "non-negative; the weights of a query sum to 1",
    "non-negative": "non-negative; the weights of a query need not sum to 1",
    "signed": "of either sign; the weights of a query need not sum to 1",
}

CAPABILITIES = {
    "causal": "can be restricted to earlier tokens (causal=True)",
    "padding": "takes a padding mask",
    "segments": "takes a mask of packed documents",
    "arbitrary_mask": "takes any mask",  # a card that names it need not name padding and segments
    "attn_bias": "takes a bias that is added to the scores",
    "context": "attends to another sequence (cross-attention)",
    "cache": "decodes token by token with a cache",
    "weights": "returns its attention weights",
    "equivariant": "is permutation-equivariant: permuted tokens give the same output, permuted",
}

CAPABILITY_ALIASES = {"mask": ("padding", "segments", "arbitrary_mask")}
"""Spellings of version 0.1, accepted for one more version."""


class UnsupportedError(TypeError):
    """A mechanism was called with something that it does not support."""


def current_capabilities(names: Iterable[str]) -> tuple[str, ...]:
    """Return the capabilities under their current names."""
    return tuple(name for old in names for name in CAPABILITY_ALIASES.get(old, (old,)))


@dataclass(frozen=True, kw_only=True)
class Card:
    """The facts about a mechanism from which the index, the command line and the header of its lesson are generated.

    Write it with literals only: it is read from the source text, without importing torch.
    Costs are functions of n (length), d (embed_dim) and h (heads). ``parent`` is the mechanism that it changes.
    ``weights`` describes ``attention_weights()``; an ``always_causal`` mechanism has no form without ``causal``.
    ``constant_state``: decoding keeps a state of constant size in place of keys and values.

    Raises:
        ValueError: for an unknown kind, kind of weights or capability, or ``always_causal`` without "causal".
    """

    title: str
    summary: str
    paper: str
    authors: str
    year: int
    arxiv: str | None
    kind: Kind
    heads: str
    time: str
    memory: str
    representation: str
    use_case: str
    supports: tuple[str, ...]
    parent: str = ""
    weights: WeightKind = "probabilities"
    always_causal: bool = False
    constant_state: bool = False

    def __post_init__(self) -> None:
        if self.kind not in get_args(Kind):
            raise ValueError(f"kind is {self.kind!r}; it must be one of {', '.join(get_args(Kind))}")
        if self.weights not in get_args(WeightKind):
            raise ValueError(f"weights is {self.weights!r}; it must be one of {', '.join(get_args(WeightKind))}")
        if isinstance(self.supports, str):
            raise ValueError(f"supports is the text {self.supports!r}; write a tuple: ({self.supports!r},)")
        supports = current_capabilities("mask" if word == "arbitrary_mask" else word for word in self.supports)
        object.__setattr__(self, "supports", tuple(dict.fromkeys(supports)))
        for word in self.supports:
            if word not in CAPABILITIES:
                near = nearest(word, CAPABILITIES)
                hint = f"did you mean {near}?" if near else f"there are: {', '.join(CAPABILITIES)}"
                raise ValueError(f"supports names {word!r}; {hint}")
        if self.always_causal and "causal" not in self.supports:
            raise ValueError("always_causal needs the capability causal; add it to supports")
