"""Sigmoid attention."""

from .sigmoid import SigmoidAttention as SigmoidAttention
