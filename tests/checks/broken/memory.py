"""Memory grows faster than the card says."""

from __future__ import annotations

from dataclasses import replace

from plain import Plain

from broken._twins import breaks


@breaks("memory grows as the card says")
class SaysLinear(Plain):
    """Materializes all weights, and its card says that memory grows with the length."""

    card = replace(Plain.card, memory="n·d")
