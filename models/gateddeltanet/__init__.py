"""Gated DeltaNet (Yang et al. 2024)."""

from .gateddeltanet import GatedDeltaNet as GatedDeltaNet
