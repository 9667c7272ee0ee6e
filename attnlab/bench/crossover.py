"""The length from which one curve is below another."""

from __future__ import annotations

import math
from collections.abc import Sequence


def crossing(lengths: Sequence[int], ratios: Sequence[float]) -> float | None:
    """The length from which the ratios are above 1, interpolated on logarithmic axes.

    It is the first length if all ratios are above 1, and None if the last is not.
    """
    below = [i for i, ratio in enumerate(ratios) if ratio < 1]
    if not below:
        return float(lengths[0])
    if (i := below[-1]) == len(ratios) - 1:
        return None
    low, high = math.log(ratios[i]), math.log(ratios[i + 1])
    return float(lengths[i] * (lengths[i + 1] / lengths[i]) ** (low / (low - high)))
