"""DeltaNet (Schlag et al. 2021; Yang et al. 2024)."""

from .deltanet import DeltaNet as DeltaNet
