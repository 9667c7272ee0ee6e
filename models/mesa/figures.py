"""The example network that the lesson shows, and the layers whose cost it shows (see `attnlab.docs.lesson`).

Without the short convolution the attention weights are easier to read: with it, every key contains four letters.
"""

EXAMPLE = {"short_conv": 0}
COST = {
    "multi-head attention": ("multihead", {"num_heads": 4}),
    "MesaNet": ("mesa", {"num_heads": 4}),
}
