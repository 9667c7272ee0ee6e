"""The measured cost of the lesson: ``python -m attnlab.docs.lesson gatedlinear --measure``."""

COST = {
    "multi-head attention": ("multihead", {"num_heads": 4}),
    "gated linear attention": ("gatedlinear", {"num_heads": 4}),
}
