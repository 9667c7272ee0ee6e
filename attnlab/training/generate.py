"""Text from a network that was trained to predict the next byte."""

from __future__ import annotations

import codecs
from collections.abc import Iterator

import torch

from attnlab.network import Network
from attnlab.utils.errors import UserError


@torch.no_grad()
def generate(
    network: Network, prompt: str, *, length: int, temperature: float = 0.8, top_k: int = 0, seed: int = 0
) -> Iterator[str]:
    """Continue ``prompt`` by ``length`` bytes, yielding the text as its characters become whole.

    Args:
        network: reads and predicts bytes; where its positions end, it sees at most its `limit` of the last ones.
        prompt: how the text begins.
        length: bytes to write.
        temperature: divides the scores; 0 takes the likeliest byte always.
        top_k: choose among so many likeliest bytes; 0 among all.
        seed: the same seed writes the same text.

    Raises:
        UserError: for a prompt that is empty, or no Unicode text.
    """
    device = next(network.parameters()).device
    generator = torch.Generator().manual_seed(seed)
    decoder = codecs.getincrementaldecoder("utf-8")("replace")
    seen = _bytes(prompt)
    network.eval()
    caches, limit = network.caches(), network.limit
    for _ in range(length):
        if caches and (limit is None or len(seen) <= limit):
            scores = network(torch.tensor([seen[caches[0].num_seen :]], device=device), caches=caches)
        else:  # beyond the last learned position they all move by one
            scores = network(torch.tensor([seen if limit is None else seen[-limit:]], device=device))
        scores = scores[0, -1].float().cpu()
        if top_k:
            scores[scores < scores.topk(top_k).values[-1]] = -torch.inf
        if temperature == 0:
            byte = int(scores.argmax())
        else:
            scores = (scores - scores.max()) / temperature  # at most 0: no temperature makes them infinite
            byte = int(torch.multinomial(scores.softmax(-1), 1, generator=generator))
        seen.append(byte)
        yield decoder.decode(bytes([byte]))
    yield decoder.decode(b"", final=True)


def _bytes(prompt: str) -> list[int]:
    """The bytes of a prompt; those of a command line that are no UTF-8 stay what they were."""
    if not prompt:
        raise UserError("the prompt is empty; give at least one character")
    try:
        return list(prompt.encode("utf-8", "surrogateescape"))
    except UnicodeEncodeError:
        raise UserError(f"the prompt is no Unicode text ({prompt!a:.60}); give other characters") from None
