"""Mamba-2 (Dao & Gu 2024)."""

from .mamba2 import Mamba2 as Mamba2
