"""Text generation with a network that predicts the next byte."""

from __future__ import annotations

import codecs
from collections.abc import Iterator

import torch

from attnlab.network import Network
from attnlab.nn.layer_caches import LayerCaches
from attnlab.training.objective import eval_mode
from attnlab.utils.errors import UserError


@torch.no_grad()
def generate(
    network: Network, prompt: str, *, length: int, temperature: float = 0.8, top_k: int = 0, seed: int = 0
) -> Iterator[str]:
    """Continue ``prompt`` by ``length`` bytes, yielding the text as its characters become complete.

    Args:
        network: predicts bytes; its context is the last `limit` bytes if its positions are limited.
        prompt: the beginning of the text; the empty text is refused.
        length: bytes to generate.
        temperature: divides the logits; 0 always takes the most likely byte.
        top_k: sample from the k most likely bytes; 0 for all.
        seed: of the sampling.
    """
    device = next(network.parameters()).device
    generator = torch.Generator().manual_seed(seed)
    decoder = codecs.getincrementaldecoder("utf-8")("replace")
    tokens = _bytes(prompt)
    network.eval()
    caches, limit = network.caches(), network.limit
    for _ in range(length):
        if caches and (limit is None or len(tokens) <= limit):
            scores = network(torch.tensor([tokens[caches[0].num_seen :]], device=device), caches=caches)
        else:  # beyond the limit all positions shift, so that the cache is invalid
            scores = network(torch.tensor([tokens if limit is None else tokens[-limit:]], device=device))
        scores = scores[0, -1].float().cpu()
        if top_k:
            scores[scores < scores.topk(top_k).values[-1]] = -torch.inf
        if temperature == 0:
            byte = int(scores.argmax())
        else:
            scores = (scores - scores.max()) / temperature  # at most 0, so that no temperature makes them infinite
            byte = int(torch.multinomial(scores.softmax(-1), 1, generator=generator))
        tokens.append(byte)
        yield decoder.decode(bytes([byte]))
    yield decoder.decode(b"", final=True)


@torch.no_grad()
def caches_of_one_token(network: Network) -> LayerCaches | None:
    """The caches after one token, which know their `LayerCaches.sizes`; None for a network that decodes without."""
    caches = network.caches() if network.outputs.kind == network.inputs.kind == "tokens" else None
    if caches:
        with eval_mode(network):
            network(torch.zeros(1, 1, dtype=torch.long, device=next(network.parameters()).device), caches=caches)
    return caches


def _bytes(prompt: str) -> list[int]:
    """The bytes of a prompt; invalid UTF-8 from the command line is kept as it is."""
    if not prompt:
        raise UserError("the prompt is empty; give at least one character")
    try:
        return list(prompt.encode("utf-8", "surrogateescape"))
    except UnicodeEncodeError:
        raise UserError(f"the prompt is not valid Unicode ({prompt!a:.60}); give other characters") from None
