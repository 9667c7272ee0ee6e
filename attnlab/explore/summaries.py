"""Summaries of the attention of each head: numbers that are read with their caveats.

A summary describes the weights, not what a head does for the output: for that, remove the head (`ablation`).

Axes: H heads, N queries, n queries at a time, M keys.
"""

from __future__ import annotations

import torch
from torch import Tensor

from attnlab.explore.forward import CHUNK_VALUES, LayerPass
from attnlab.explore.setup import Head

MAX_QUERIES = 512
"""Queries that are summarized of an input beyond this length in which the weights are not kept."""

TAGS = ("previous token", "same position", "first token", "induction", "same token")
"""The patterns that heads are scored for. The score is the share of |weight| on the key or the keys of the pattern,
averaged over the queries for which such a key exists:

previous token: the key before the query; same position: the query's own; first token: the first key, for later queries;
induction: keys that follow an earlier occurrence of the query's token (Olsson et al. 2022, "In-context Learning and
Induction Heads"); same token: other keys with the query's token.
"""


def summarize(layer: LayerPass, tokens: tuple[str, ...]) -> list[Head]:
    """Return the summaries of each head of a layer; none without weights.

    Rows without weight, such as fully masked ones, count only for the range of row sums. Of more than `MAX_DETAIL`
    tokens, `MAX_QUERIES` evenly spaced queries are summarized.
    """
    if layer.map is None:
        return []
    N, M = layer.shape
    if layer.shown is not None:  # as if the sequence had only the tokens that are shown
        index = layer.shown.nonzero().squeeze(1)
        parts = [
            _part(
                layer.weights()[:, index][:, :, index],
                torch.arange(len(index)),
                tuple(tokens[i] for i in index.tolist()),
                layer.is_signed,
            )
        ]
        return _heads(parts, layer)
    rows = torch.arange(N) if layer.is_kept or N <= MAX_QUERIES else torch.linspace(0, N - 1, MAX_QUERIES).long()
    step = max(1, CHUNK_VALUES // max(1, layer.map.shape[1] * M))
    whole = len(rows) == N <= step  # no copy of all rows
    parts = [_part(layer.weights(None if whole else part), part, tokens, layer.is_signed) for part in rows.split(step)]
    return _heads(parts, layer)


def _heads(parts: list[dict[str, Tensor]], layer: LayerPass) -> list[Head]:
    """The summaries of all heads from sums over parts of the queries."""
    low = torch.stack([part["low"] for part in parts]).amin(0)
    high, peak = (torch.stack([part[name] for part in parts]).amax(0) for name in ("high", "peak"))
    entropy, distance, count, shares, eligible = (
        torch.stack([part[name] for part in parts]).sum(0)
        for name in ("entropy", "distance", "count", "shares", "eligible")
    )
    tags = (shares / eligible.clamp(min=1)).T.tolist()
    found = (eligible > 0).T.tolist()
    return [
        Head(
            entropy=None if layer.is_signed else float(entropy[h] / count[h].clamp(min=1)),
            distance=float(distance[h] / count[h].clamp(min=1)),
            sink=tags[h][TAGS.index("first token")],
            row_sums=(float(low[h]), float(high[h])),
            peak=float(peak[h]),
            thumbnail_peak=0.0,
            tags={name: tags[h][i] for i, name in enumerate(TAGS) if found[h][i]},
        )
        for h in range(len(low))
    ]


def _part(weights: Tensor, rows: Tensor, tokens: tuple[str, ...], signed: bool) -> dict[str, Tensor]:
    """Sums over some queries of (H, n, M) weights, each (H,) or (tags, H)."""
    H, _, M = weights.shape
    size = weights.abs() if signed else weights
    total = size.sum(-1)  # (H, n)
    real = total > 0
    share = 1 / total.where(real, 1.0)
    keys = torch.arange(M)
    distance = torch.einsum("hnm,nm->hn", size, (rows[:, None] - keys).abs().float()) * share
    entropy = torch.zeros(H) if signed else (torch.special.entr(weights).sum(-1) * share + total.where(real, 1.0).log())
    sums = weights.sum(-1) if signed else total
    shares, eligible = [], []
    for on_pattern, exists in _pattern_weights(size, rows, tokens[:M]):
        counted = exists & real  # (H, n)
        shares.append((on_pattern * share * counted).sum(-1))
        eligible.append(counted.sum(-1))
    return {
        "low": sums.amin(-1),
        "high": sums.amax(-1),
        "peak": size.amax((-2, -1)),
        "distance": (distance * real).sum(-1),
        "entropy": entropy if signed else (entropy * real).sum(-1),
        "count": real.sum(-1),
        "shares": torch.stack(shares),
        "eligible": torch.stack(eligible),
    }


def _pattern_weights(size: Tensor, rows: Tensor, tokens: tuple[str, ...]) -> list[tuple[Tensor, Tensor]]:
    """For each of `TAGS`, the sum of |weight| (H, n, M) on its keys, (H, n), and which queries have such keys, (n,)."""
    numbers = {token: i for i, token in enumerate(dict.fromkeys(tokens))}
    ids = torch.tensor([numbers[token] for token in tokens])
    keys, queries, n = torch.arange(len(tokens)), rows[:, None], torch.arange(len(rows))
    same = ids[rows][:, None] == ids
    follows = torch.zeros_like(same)
    follows[:, 1:] = same[:, :-1]  # the key before has the query's token
    weights = [size[:, n, (rows - 1).clamp(min=0)], size[:, n, rows], size[:, :, 0]]
    pairs = list(zip(weights, (rows > 0, rows >= 0, rows > 0), strict=True))
    several = (follows & (keys <= queries), same & (keys != queries))
    return pairs + [(torch.einsum("hnm,nm->hn", size, each.to(size.dtype)), each.any(-1)) for each in several]
