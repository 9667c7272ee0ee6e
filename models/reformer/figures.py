"""The example network and the measured cost of the lesson."""

EXAMPLE = {"num_buckets": 2, "num_hashes": 4, "chunk_length": 8}
COST = {
    "multi-head attention": ("multihead", {"num_heads": 4}),
    "reformer, r = 1": ("reformer", {"num_heads": 4, "num_buckets": 64, "num_hashes": 1}),
    "reformer, r = 4": ("reformer", {"num_heads": 4, "num_buckets": 64, "num_hashes": 4}),
}
