"""The example network that the lesson shows, and the layers whose cost it shows (see `attnlab.docs.lesson`)."""

EXAMPLE = {"state_size": 32}
COST = {
    "multi-head attention": ("multihead", {"num_heads": 4}),
    "Mamba-2": ("mamba2", {"num_heads": 4}),
}
