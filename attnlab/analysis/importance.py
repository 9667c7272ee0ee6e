"""The importance of each attention head, by the gradient of the loss.

Source: Michel et al. 2019, "Are Sixteen Heads Really Better than One?", arXiv:1905.10650.

Axes: B batch, N length, H heads, d head_dim.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from functools import partial
from itertools import accumulate

import torch
from torch import Tensor, nn

from attnlab.network import Network
from attnlab.network.pruning import edit_heads
from attnlab.nn.multihead import MultiHeadBase, as_multihead
from attnlab.tasks.base import Split
from attnlab.training.objective import Objective, batches, eval_mode
from attnlab.utils.errors import UserError

HeadIndex = tuple[int, int]
"""The layer of a head and its index in the layer, both counted from 0."""


def layers_with_heads(network: Network) -> dict[int, MultiHeadBase]:
    """The layers with separable heads, by their index; raises UnsupportedError if there is none."""
    layers = network.mechanisms()
    found = {i: layer for i, layer in enumerate(layers) if isinstance(layer, MultiHeadBase)}
    if layers and not found:
        as_multihead(layers[0])  # raises
    return found


def without_heads(network: Network) -> str:
    """One line that names the layers without separable heads, which stay whole; empty if there is none."""
    return layers_without(
        "separate heads, so these layers stay whole",
        {i: layer for i, layer in enumerate(network.mechanisms()) if not isinstance(layer, MultiHeadBase)},
    )


def layers_without(what: str, layers: Mapping[int, nn.Module]) -> str:
    """One line that says that these layers have no ``what``; empty without layers."""
    indices: dict[str, list[str]] = {}
    for i, layer in layers.items():
        indices.setdefault(type(layer).__name__, []).append(str(i))
    names = [f"layer{'s' * (len(each) > 1)} {', '.join(each)} ({name})" for name, each in indices.items()]
    return f"no {what}: {', '.join(names)}" if layers else ""


def importance(
    network: Network, split: Split, objective: Objective, *, batch_size: int = 128, normalised: bool = True
) -> list[Tensor]:
    """``I_h = E_x |∂L(x) / ∂ξ_h|``, where the gate ``ξ_h = 1`` multiplies the output of head h.

    Source: Michel et al. 2019, section 4.1; ``L(x)`` is the mean loss of one example.

    Args:
        network: with multi-head attention; evaluated in eval mode.
        split: the examples x.
        objective: the loss.
        batch_size: examples per batch; does not affect the result.
        normalised: divide by the l2 norm of each layer, as in the paper, to make layers comparable.

    Returns:
        (H,) for each layer, in float64 on the CPU; (0,) for a layer without separable heads.

    Raises:
        UnsupportedError: for a network without a layer with separable heads.
    """
    by_index = layers_with_heads(network)
    layers = [*by_index.values()]
    sums = [torch.zeros(layer.num_heads, dtype=torch.float64) for layer in layers]
    with torch.enable_grad(), _unpacked_eval_mode(network, layers):
        like = next(network.parameters()).detach()
        for x, y, lengths in batches(network, split, batch_size):
            # one gate per example, so that one backward pass gives the gradient of each example
            gates = [like.new_ones(len(x), 1, layer.num_heads, 1).requires_grad_() for layer in layers]
            with ExitStack() as stack:
                for layer, gate in zip(layers, gates, strict=True):
                    stack.enter_context(edit_heads(layer, gate.mul))
                losses, _, targets = objective.each(network(x, lengths), y)
            gradients = torch.autograd.grad((losses / targets.clamp(min=1)).sum(), gates)
            for total, gradient in zip(sums, gradients, strict=True):
                total += gradient.abs().sum(0).flatten().double().cpu()
    means = [total / max(len(split.x), 1) for total in sums]
    if normalised:
        means = [m / m.norm().clamp(min=torch.finfo(m.dtype).tiny) for m in means]
    return _for_all_layers(network, dict(zip(by_index, means, strict=True)), torch.zeros(0, dtype=torch.float64))


@torch.no_grad()
def mean_heads(network: Network, split: Split, *, batch_size: int = 128) -> list[Tensor]:
    """The mean output of each head over all real tokens, (H, d) for each layer; (0, 0) without separable heads."""
    by_index = layers_with_heads(network)
    layers = [*by_index.values()]
    like = next(network.parameters())
    sums = [like.new_zeros(layer.num_heads, layer.merged_size // layer.num_heads) for layer in layers]
    count = 0
    with _unpacked_eval_mode(network, layers):
        for x, _, lengths in batches(network, split, batch_size):
            real = torch.ones(x.shape[:2], dtype=torch.bool, device=x.device)
            if lengths is not None:
                real = torch.arange(x.shape[1], device=x.device) < lengths[:, None]
            count += int(real.sum())
            with ExitStack() as stack:
                for layer, total in zip(layers, sums, strict=True):
                    stack.enter_context(edit_heads(layer, partial(_accumulate, total, real)))
                network(x, lengths)
    means = [total / max(count, 1) for total in sums]
    return _for_all_layers(network, dict(zip(by_index, means, strict=True)), like.new_zeros(0, 0))


def pruning_order(network: Network, importances: Sequence[Tensor]) -> list[tuple[HeadIndex, ...]]:
    """The heads to prune in each step, least important first; the last head of a layer is never pruned.

    Heads are pruned one by one. Where several groups of query heads share a key head, a whole group is pruned in one
    step, and its importance is the mean over its heads.
    """
    ranked = []
    for i, layer in layers_with_heads(network).items():
        values = importances[i]
        groups = layer.num_kv_heads if layer.num_kv_heads > 1 else layer.num_heads
        size = layer.num_heads // groups
        units = sorted((float(values[g * size : (g + 1) * size].mean()), i, g, size) for g in range(groups))
        ranked += units[:-1]
    return [tuple((i, g * size + j) for j in range(size)) for _, i, g, size in sorted(ranked)]


def select_heads(steps: Sequence[tuple[HeadIndex, ...]], share: float, *, num_heads: int) -> dict[int, list[int]]:
    """The heads of the first ``steps`` that fit into a share of all heads, by layer, as `prune_heads` takes them.

    Raises:
        UserError: for a share that is smaller than the first step, larger than all steps, or not between 0 and 1.
    """
    if not 0 < share < 1:
        raise UserError(f"the share of heads to prune must be above 0 and below 1, not {share:g}")
    if not steps:
        raise UserError("no head can be pruned: every layer has one head or one group of heads")
    most = share * num_heads + 1e-9  # 0.7 of 10 heads is 7
    first, last = len(steps[0]), sum(map(len, steps))
    if most < first or most >= last + 1:
        raise UserError(
            f"{share:g} of {num_heads} heads cannot be pruned: every layer keeps at least one, so that {first} to "
            f"{last} can be pruned, a share from {first / num_heads:.3g} to {last / num_heads:.3g}"
        )
    heads: dict[int, list[int]] = {}
    for step, pruned in zip(steps, accumulate(map(len, steps)), strict=True):
        for layer, head in step if pruned <= most else ():
            heads.setdefault(layer, []).append(head)
    return heads


def _for_all_layers(network: Network, by_index: Mapping[int, Tensor], otherwise: Tensor) -> list[Tensor]:
    """The values of every layer, ``otherwise`` for those without heads."""
    return [by_index.get(i, otherwise) for i in range(len(network.blocks))]


def _accumulate(total: Tensor, real: Tensor, heads: Tensor) -> Tensor:
    """Return ``heads`` (B, N, H, d) unchanged and add those of real tokens to ``total`` (H, d)."""
    total.add_(heads[real].sum(0))
    return heads


@contextmanager
def _unpacked_eval_mode(network: Network, layers: Sequence[MultiHeadBase]) -> Iterator[None]:
    """Eval mode without packing, which would merge the examples of a padded batch into one row."""
    supports_packing = [layer.supports_packing for layer in layers]
    for layer in layers:
        layer.__dict__["supports_packing"] = False
    try:
        with eval_mode(network):
            yield
    finally:
        for layer, before in zip(layers, supports_packing, strict=True):
            layer.__dict__["supports_packing"] = before
