"""The example network that the lesson shows: short words, because the attention pattern is narrow."""

from attnlab.docs.example import Words

EXAMPLE = {"block_size": 4, "num_random": 1, "text": "lamp lamp lamp lamp", "words": Words(shortest=2, longest=4)}
