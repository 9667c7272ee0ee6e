"""Kimi Delta Attention (Kimi Team 2025)."""

from .kimidelta import KimiDeltaAttention as KimiDeltaAttention
