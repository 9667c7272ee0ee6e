"""The example network that the lesson shows: short words, and a new word in every chunk."""

from attnlab.docs.example import Words

EXAMPLE = {"chunk_size": 8, "text": "sun sun map map hat hat ", "words": Words(shortest=2, longest=3, restart=8)}
