"""The example network that the lesson shows: words that are shorter than the window."""

from attnlab.docs.example import Words

EXAMPLE = {"window_size": 6, "text": "lamp lamp lamp lamp", "words": Words(shortest=2, longest=5)}
