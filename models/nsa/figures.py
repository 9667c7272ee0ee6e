"""The example network of the lesson, which selects few blocks, and the layers whose cost is measured."""

EXAMPLE = {
    "compress_block": 2,
    "compress_stride": 2,
    "select_block": 2,
    "num_selected": 4,
    "window_size": 3,
}
COST = {
    "multi-head attention": ("multihead", {"num_heads": 4}),
    "native sparse attention": ("nsa", {"num_heads": 4, "num_kv_heads": 1}),
}
