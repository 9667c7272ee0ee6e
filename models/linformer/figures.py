"""The example network and the measured cost of the lesson."""

EXAMPLE = {"max_length": 24, "rank": 12}
COST = {
    "multi-head attention": ("multihead", {"num_heads": 4, "causal": False}),
    "linformer, k = 64": ("linformer", {"num_heads": 4, "causal": False, "max_length": 8192, "rank": 64}),
    "linformer, k = 256": ("linformer", {"num_heads": 4, "causal": False, "max_length": 8192, "rank": 256}),
}
