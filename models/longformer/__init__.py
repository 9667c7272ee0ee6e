"""Longformer attention."""

from .longformer import LongformerAttention as LongformerAttention
