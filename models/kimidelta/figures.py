"""The measured cost of the lesson: ``python -m attnlab.docs.lesson kimidelta --measure``."""

COST = {
    "multi-head attention": ("multihead", {"num_heads": 4}),
    "Gated DeltaNet": ("gateddeltanet", {"num_heads": 4}),
    "Kimi Delta Attention": ("kimidelta", {"num_heads": 4}),
}
