"""RWKV-7 (Peng et al. 2025)."""

from .rwkv7 import RWKV7 as RWKV7
