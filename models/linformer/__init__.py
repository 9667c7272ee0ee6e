"""Linformer attention (Wang et al. 2020)."""

from .linformer import LinformerAttention as LinformerAttention
