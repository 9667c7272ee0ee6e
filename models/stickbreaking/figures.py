"""The measured cost of the lesson: ``python -m attnlab.docs.lesson stickbreaking --measure``."""

COST = {
    "multi-head attention": ("multihead", {"num_heads": 4}),
    "stick-breaking attention": ("stickbreaking", {"num_heads": 4}),
}
