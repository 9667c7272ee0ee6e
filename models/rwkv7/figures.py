"""The measured cost of the lesson: ``python -m attnlab.docs.lesson rwkv7 --measure``."""

COST = {
    "multi-head attention": ("multihead", {"num_heads": 4}),
    "Gated DeltaNet": ("gateddeltanet", {"num_heads": 4}),
    "RWKV-7": ("rwkv7", {"num_heads": 4}),
}
