"""Multi-head latent attention."""

from .latent import LatentAttention as LatentAttention
