"""The measured cost of the lesson: ``python -m attnlab.docs.lesson performer --measure``."""

COST = {
    "multi-head attention": ("multihead", {"num_heads": 4}),
    "performer, m = 44": ("performer", {"num_heads": 4}),
    "performer, m = 256": ("performer", {"num_heads": 4, "num_features": 256}),
}
