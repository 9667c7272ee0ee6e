"""MesaNet (von Oswald et al. 2025)."""

from .mesa import MesaNet as MesaNet
