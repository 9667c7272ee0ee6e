"""The measured cost of the lesson: ``python -m attnlab.docs.lesson retention --measure``."""

COST = {
    "multi-head attention": ("multihead", {"num_heads": 4}),
    "retention": ("retention", {"num_heads": 4}),
}
