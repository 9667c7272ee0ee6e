"""FAVOR+: random features of the softmax (Choromanski et al. 2020)."""

from .performer import PerformerAttention as PerformerAttention
