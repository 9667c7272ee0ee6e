"""Positional encodings: added to the tokens, rotations of queries and keys, or biases that depend on the distance.

`Sinusoidal` and `Learned` are absolute: a vector is added to each token, once, before the first layer. `Rotary`,
`ALiBi` and `T5Bias` are relative and act in every layer: they depend only on the distance between query and key, so
that padding on the left, packing and a cache do not change the result.

Axes: B batch, H heads, N queries, M keys, d head_dim, D embed_dim.
"""

from attnlab.ops.bias import RelativeBias
from attnlab.positions.absolute import AbsoluteEmbedding, Learned, Sinusoidal, make_absolute
from attnlab.positions.base import Positions
from attnlab.positions.biases import ALiBi, T5Bias
from attnlab.positions.parse import parse_positions
from attnlab.positions.rotary import Rotary, Scaling

__all__ = [
    "ALiBi",
    "AbsoluteEmbedding",
    "Learned",
    "Positions",
    "RelativeBias",
    "Rotary",
    "Scaling",
    "Sinusoidal",
    "T5Bias",
    "make_absolute",
    "parse_positions",
]
