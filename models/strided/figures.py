"""The example network that the lesson shows: short words, because the attention pattern is narrow."""

from attnlab.docs.example import Words

EXAMPLE = {"stride": 4, "text": "lamp lamp lamp lamp", "words": Words(shortest=2, longest=4)}
