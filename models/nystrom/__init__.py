"""Nyström attention (Xiong et al. 2021)."""

from .nystrom import NystromAttention as NystromAttention
