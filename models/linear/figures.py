"""The measured cost of the lesson: ``python -m attnlab.docs.lesson linear --measure``."""

COST = {
    "multi-head attention": ("multihead", {"num_heads": 4}),
    "linear attention": ("linear", {"num_heads": 4}),
}
