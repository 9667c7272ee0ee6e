"""The example network of the lesson, which selects few of its keys, and the layers whose cost is measured."""

EXAMPLE = {"top_k": 4}
COST = {
    "multi-head attention": ("multihead", {"num_heads": 4}),
    "DeepSeek sparse attention, k = 64": ("dsa", {"num_heads": 4}),
}
DECODING = {
    "decoding, multi-head attention": ("multihead", {"num_heads": 8}),
    "decoding, k = 64": ("dsa", {"num_heads": 8}),
}
