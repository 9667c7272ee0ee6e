"""Which heads of a network matter, by the slope of the loss.

Source: Michel et al. 2019, "Are Sixteen Heads Really Better than One?", arXiv:1905.10650.

Axes: B batch, N length, H heads, d head_dim.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from itertools import accumulate

import torch
from torch import Tensor

from attnlab.analysis.bootstrap import batches
from attnlab.network import Network
from attnlab.nn.multihead import MultiHeadBase, as_multihead
from attnlab.nn.pruning import edit_heads
from attnlab.tasks.base import Split
from attnlab.training.objective import Objective
from attnlab.utils.errors import UserError

Place = tuple[int, int]
"""A head: its layer and its number there, both counted from 0."""


def importance(
    network: Network, split: Split, objective: Objective, *, batch_size: int = 128, normalised: bool = True
) -> list[Tensor]:
    """``I_h = E_x |∂L(x) / ∂ξ_h|``, where ``ξ_h``, 1 as the network stands, multiplies what head h gives.

    Source: Michel et al. 2019, section 4.1; ``L(x)`` is the mean loss of one example.

    Args:
        network: of mechanisms with heads; it is asked in eval mode.
        split: the examples x.
        objective: the loss.
        batch_size: how many at a time; it does not change what comes out.
        normalised: divide by the l2 norm of each layer, so that layers compare (as in the paper).

    Returns:
        (H,) for each layer, in float64 on the CPU.

    Raises:
        UnsupportedError: for a mechanism without heads.
    """
    layers = attention_layers(network)
    sums = [torch.zeros(layer.num_heads, dtype=torch.float64) for layer in layers]
    with torch.enable_grad(), _at_rest(network, layers):
        like = next(network.parameters()).detach()
        for x, y, lengths in batches(network, split, batch_size):
            # each example has gates of its own, so that one pass backward gives the slope of each
            gates = [like.new_ones(len(x), 1, layer.num_heads, 1).requires_grad_() for layer in layers]
            with ExitStack() as stack:
                for layer, gate in zip(layers, gates, strict=True):
                    stack.enter_context(edit_heads(layer, gate.mul))
                losses, _, asked = objective.each(network(x, lengths), y)
            slopes = torch.autograd.grad((losses / asked.clamp(min=1)).sum(), gates)
            for total, slope in zip(sums, slopes, strict=True):
                total += slope.abs().sum(0).flatten().double().cpu()
    means = [total / max(len(split.x), 1) for total in sums]
    return [m / m.norm().clamp(min=torch.finfo(m.dtype).tiny) for m in means] if normalised else means


@torch.no_grad()
def mean_heads(network: Network, split: Split, *, batch_size: int = 128) -> list[Tensor]:
    """What each head gives on average over all real tokens, (H, d) for each layer.

    Raises:
        UnsupportedError: for a mechanism without heads.
    """
    layers = attention_layers(network)
    like = next(network.parameters())
    sums = [like.new_zeros(layer.num_heads, layer.head_dim) for layer in layers]
    count = 0
    with _at_rest(network, layers):
        for x, _, lengths in batches(network, split, batch_size):
            real = torch.ones(x.shape[:2], dtype=torch.bool, device=x.device)
            if lengths is not None:
                real = torch.arange(x.shape[1], device=x.device) < lengths[:, None]
            count += int(real.sum())
            with ExitStack() as stack:
                for layer, total in zip(layers, sums, strict=True):
                    stack.enter_context(edit_heads(layer, _adding(total, real)))
                network(x, lengths)
    return [total / max(count, 1) for total in sums]


def order(network: Network, importances: Sequence[Tensor]) -> list[tuple[Place, ...]]:
    """What can go at a time, the least important first; the last of a layer stays.

    A head goes by itself; where there are several groups of heads that read one head of keys, a whole group goes, and
    counts as its mean.

    Raises:
        UnsupportedError: for a mechanism without heads.
    """
    ranked = []
    for i, (layer, found) in enumerate(zip(attention_layers(network), importances, strict=True)):
        groups = layer.num_kv_heads if layer.num_kv_heads > 1 else layer.num_heads
        size = layer.num_heads // groups
        units = sorted((float(found[g * size : (g + 1) * size].mean()), i, g, size) for g in range(groups))
        ranked += units[:-1]
    return [tuple((i, g * size + j) for j in range(size)) for _, i, g, size in sorted(ranked)]


def plan(steps: Sequence[tuple[Place, ...]], share: float, *, of: int) -> dict[int, list[int]]:
    """The first of these steps, as many as fit into a share of all heads, by layer: what `prune_heads` takes.

    Args:
        steps: what goes at a time (see `order`).
        share: above 0, below 1.
        of: how many heads there are.

    Raises:
        UserError: for a share that is smaller than the first step, or larger than all of them.
    """
    if not 0 < share < 1:
        raise UserError(f"the share of heads to prune must be above 0 and below 1, not {share:g}")
    if not steps:
        raise UserError("there is nothing to prune: every layer has one head, or one group of heads, and keeps it")
    most = share * of + 1e-9  # 0.7 of 10 heads is 7
    first, last = len(steps[0]), sum(map(len, steps))
    if most < first or most >= last + 1:
        raise UserError(
            f"{share:g} of {of} heads cannot be pruned: every layer keeps some, and from {first} to {last} of all can "
            f"go, a share from {first / of:.3g} to {last / of:.3g}"
        )
    heads: dict[int, list[int]] = {}
    for step, gone in zip(steps, accumulate(map(len, steps)), strict=True):
        for layer, head in step if gone <= most else ():
            heads.setdefault(layer, []).append(head)
    return heads


def attention_layers(network: Network) -> list[MultiHeadBase]:
    """The network's attention layers.

    Raises:
        UnsupportedError: where the heads of one cannot be told apart.
    """
    return [as_multihead(layer) for layer in network.mechanisms()]


def _adding(total: Tensor, real: Tensor) -> Callable[[Tensor], Tensor]:
    """Heads (B, N, H, d) as they are, those of real tokens added to ``total`` (H, d)."""

    def edit(heads: Tensor) -> Tensor:
        total.add_(heads[real].sum(0))
        return heads

    return edit


@contextmanager
def _at_rest(network: Network, layers: Sequence[MultiHeadBase]) -> Iterator[None]:
    """In eval mode, and a padded batch as it is, not packed into one row: an example keeps its place."""
    was_training, supports_packing = network.training, [layer.supports_packing for layer in layers]
    network.eval()
    for layer in layers:
        layer.__dict__["supports_packing"] = False
    try:
        yield
    finally:
        network.train(was_training)
        for layer, was in zip(layers, supports_packing, strict=True):
            layer.__dict__["supports_packing"] = was
