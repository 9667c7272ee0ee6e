"""Gated attention."""

from .gated import GatedAttention as GatedAttention
