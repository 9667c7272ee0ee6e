"""BigBird attention."""

from .bigbird import BigBirdAttention as BigBirdAttention
