"""How place matters: a vector is added to each token, queries and keys are turned, or scores are changed by distance.

`Sinusoidal` and `Learned` are absolute: added once, before the first layer. `Rotary`, `ALiBi` and `T5Bias` work inside
of every mechanism and are relative: what a token hears of another depends on how far apart they are alone, so that
padding on the left, packing and a cache change nothing.

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
