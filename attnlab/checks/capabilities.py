"""What a layer may claim, and how a check says that it cannot be held to a promise, or broke on the way."""

from __future__ import annotations

CLAIMS = {
    "causal": "it cannot be causal",
    "padding": "it takes no padding mask",
    "segments": "it takes no mask of packed documents",
    "arbitrary_mask": "it does not take every mask",
    "attn_bias": "it takes no bias",
    "context": "it takes no context",
    "cache": "it takes no cache",
    "weights": "it shows no weights",
    "equivariant": "it does not claim to know no order",
    "probabilities": "its weights are no probabilities",
    "mix": "it has no mix(weights, x)",
    "dropout": "it has no dropout",
    "reference": "there is no reference to compare with",
    "export": "it does not claim to be exported",
    "contract": "it is no attnlab.Attention",
}
"""What a layer may claim, and what is said of one that does not. The first nine are a card's capabilities."""


class NotClaimed(Exception):  # noqa: N818  an outcome, not an error
    """Raised inside a check: this layer cannot be asked for that; the message says why."""


class Broken(Exception):  # noqa: N818  an outcome, not an error
    """Raised inside a check: the layer raised, or gave what cannot be measured; the message says what."""
