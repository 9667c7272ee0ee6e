"""The example network and the measured cost of the lesson."""

EXAMPLE = {"num_landmarks": 12}
COST = {
    "multi-head attention": ("multihead", {"num_heads": 4, "causal": False}),
    "nyström, m = 64": ("nystrom", {"num_heads": 4, "causal": False, "num_landmarks": 64}),
    "nyström, m = 256": ("nystrom", {"num_heads": 4, "causal": False, "num_landmarks": 256}),
}
