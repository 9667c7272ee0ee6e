"""The capabilities that a check may require, and the exceptions by which a check ends early."""

from __future__ import annotations

CAPABILITIES = {
    "causal": "it cannot be causal",
    "padding": "it takes no padding mask",
    "segments": "it takes no mask of packed sequences",
    "arbitrary_mask": "it does not take every mask",
    "attn_bias": "it takes no bias",
    "context": "it takes no context",
    "cache": "it takes no cache",
    "weights": "it does not return attention weights",
    "equivariant": "it is not declared permutation-equivariant",
    "probabilities": "its attention weights are not probabilities",
    "apply_weights": "it has no apply_weights(weights, x)",
    "dropout": "it has no dropout",
    "reference": "it has no reference implementation",
    "export": "it is not declared exportable",
    "contract": "it is no attnlab.Attention",
}
"""Each capability and the reason that is reported where a layer lacks it. The first nine are those of a card."""


class NotApplicable(Exception):  # noqa: N818  an outcome, not an error
    """Raised inside a check that cannot be run on this layer; the message is the reason."""


class CheckFailed(Exception):  # noqa: N818  an outcome, not an error
    """Raised inside a check where the layer raised or returned something that cannot be measured."""
